/** Loss curves of training, one row a point. */
export const TRAINING_SQL = `
CREATE TABLE training_points (
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  seconds REAL NOT NULL,
  learning_rate REAL NOT NULL,
  loss REAL NOT NULL,
  validation_loss REAL,
  validation_accuracy REAL,
  at TEXT NOT NULL,
  PRIMARY KEY (run_id, step)
) STRICT, WITHOUT ROWID;

CREATE VIEW v_training AS
SELECT run_id AS run, step, round(seconds / 60, 2) AS minutes, learning_rate, round(loss, 4) AS loss,
  round(validation_loss, 4) AS validation_loss,
  round(100 * validation_accuracy, 1) AS validation_accuracy_percent, at
FROM training_points ORDER BY run_id DESC, step;
`;
