/**
 * The first schema. Everything is written for people who open the file with the sqlite3 shell:
 * ISO times in UTC (`…_at`), units in column names, and views (`v_…`) that read like a table.
 *
 * Views keep to what SQLite 3.37 knows (Ubuntu 22.04, so JetPack 6): no ->> operator.
 *
 * Order is always the order of the integer keys, never of times: a station's clock may jump.
 * AUTOINCREMENT where an id leaves the database, so that a deleted row's id never comes back.
 */
export const STATION_SQL = `
CREATE TABLE schema_history (
  version INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  applied_at TEXT NOT NULL,
  software_version TEXT NOT NULL
) STRICT;

CREATE TABLE bursts (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE CHECK (id <> ''),
  first_seen_at TEXT NOT NULL,
  role TEXT CHECK (role IN ('train', 'heldOut')),
  role_fixed_at TEXT
) STRICT;

CREATE TRIGGER bursts_role_is_final BEFORE UPDATE OF role ON bursts
WHEN OLD.role IS NOT NULL AND NEW.role IS NOT OLD.role
BEGIN SELECT RAISE(ABORT, 'the role of a burst is fixed once and for ever'); END;

-- One row a picture (by content), however many files hold it.
CREATE TABLE media (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sha256 TEXT NOT NULL UNIQUE CHECK (length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'),
  path TEXT NOT NULL CHECK (path <> ''),
  source TEXT NOT NULL CHECK (source IN ('inbox', 'labeled')),
  size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
  width_px INTEGER CHECK (width_px > 0),
  height_px INTEGER CHECK (height_px > 0),
  captured_at TEXT,
  capture_time_source TEXT,
  burst_id TEXT REFERENCES bursts (id),
  seen_at TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'done', 'rejected')),
  reject_reason TEXT,
  CHECK ((state = 'rejected') = (reject_reason IS NOT NULL))
) STRICT;
CREATE INDEX media_waiting ON media (id) WHERE state = 'waiting';
CREATE INDEX media_burst ON media (burst_id);
CREATE INDEX media_captured ON media (captured_at);

-- The files seen at the last scan, so that an unchanged file is not hashed again.
CREATE TABLE files (
  path TEXT PRIMARY KEY CHECK (path <> ''),
  media_id INTEGER NOT NULL REFERENCES media (id) ON DELETE CASCADE,
  source TEXT NOT NULL CHECK (source IN ('inbox', 'labeled')),
  size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
  mtime_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX files_media ON files (media_id);

CREATE TABLE quarantine (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  media_id INTEGER REFERENCES media (id) ON DELETE SET NULL,
  path TEXT NOT NULL,
  reason TEXT NOT NULL CHECK (reason <> ''),
  quarantined_path TEXT,
  size_bytes INTEGER,
  at TEXT NOT NULL
) STRICT;
CREATE INDEX quarantine_media ON quarantine (media_id);

CREATE TABLE models (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  sha256 TEXT NOT NULL UNIQUE CHECK (length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*'),
  name TEXT NOT NULL,
  generalist TEXT,
  origin_run TEXT,
  classes TEXT CHECK (json_valid(classes)),
  parameters INTEGER,
  nonzero INTEGER,
  size_bytes INTEGER,
  accuracy REAL,
  macro_f1 REAL,
  latency_ms_p50 REAL,
  software_version TEXT,
  created_at TEXT,
  registered_at TEXT NOT NULL,
  present INTEGER NOT NULL CHECK (present IN (0, 1))
) STRICT;

CREATE TABLE predictions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  media_id INTEGER NOT NULL UNIQUE REFERENCES media (id),
  label TEXT NOT NULL,
  probability REAL NOT NULL CHECK (probability BETWEEN 0 AND 1),
  top5 TEXT NOT NULL CHECK (json_valid(top5)),
  model_sha256 TEXT NOT NULL REFERENCES models (sha256),
  run_ms REAL NOT NULL CHECK (run_ms >= 0),
  decode_ms REAL NOT NULL CHECK (decode_ms >= 0),
  queued_ms REAL NOT NULL CHECK (queued_ms >= 0),
  predicted_at TEXT NOT NULL
) STRICT;
CREATE INDEX predictions_time ON predictions (predicted_at);
CREATE INDEX predictions_model ON predictions (model_sha256);

-- Who said what a picture shows. Nothing is overwritten: an older word gets an end.
CREATE TABLE labels (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  media_id INTEGER NOT NULL REFERENCES media (id),
  label TEXT NOT NULL CHECK (trim(label) <> ''),
  source TEXT NOT NULL CHECK (source IN ('human', 'file', 'remote')),
  origin TEXT NOT NULL,
  at TEXT NOT NULL,
  ended_at TEXT
) STRICT;
CREATE INDEX labels_media ON labels (media_id);
CREATE UNIQUE INDEX labels_active ON labels (media_id, source, origin) WHERE ended_at IS NULL;
CREATE INDEX labels_origin ON labels (origin) WHERE ended_at IS NULL;

-- The last word on each picture.
CREATE VIEW current_labels AS
SELECT l.* FROM labels AS l
WHERE l.id = (SELECT max(id) FROM labels WHERE media_id = l.media_id AND ended_at IS NULL);

CREATE TABLE runs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE CHECK (id <> ''),
  kind TEXT NOT NULL CHECK (kind IN ('scheduled', 'manual', 'remote')),
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'finished', 'failed', 'aborted')),
  reason TEXT,
  spec TEXT NOT NULL CHECK (json_valid(spec)),
  seed INTEGER NOT NULL,
  dir TEXT NOT NULL,
  created_at TEXT NOT NULL,
  started_at TEXT,
  ended_at TEXT,
  -- labels.id up to which labels existed when the run was made.
  labels_up_to INTEGER NOT NULL
) STRICT;

CREATE TABLE run_stages (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('running', 'finished', 'failed', 'aborted')),
  started_at TEXT NOT NULL,
  seconds REAL,
  detail TEXT,
  UNIQUE (run_id, name)
) STRICT;

CREATE TABLE run_progress (
  run_id TEXT PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
  stage TEXT NOT NULL,
  share REAL NOT NULL CHECK (share BETWEEN 0 AND 1),
  seconds_left REAL,
  at TEXT NOT NULL
) STRICT;

CREATE TABLE verdicts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id TEXT NOT NULL UNIQUE REFERENCES runs (id) ON DELETE CASCADE,
  accepted INTEGER NOT NULL CHECK (accepted IN (0, 1)),
  on_probation INTEGER NOT NULL CHECK (on_probation IN (0, 1)),
  reasons TEXT NOT NULL CHECK (json_type(reasons) = 'array'),
  metrics TEXT NOT NULL CHECK (json_type(metrics) = 'object'),
  candidate_sha256 TEXT,
  at TEXT NOT NULL
) STRICT;

CREATE TABLE swaps (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  from_sha256 TEXT REFERENCES models (sha256),
  to_sha256 TEXT NOT NULL REFERENCES models (sha256),
  kind TEXT NOT NULL CHECK (kind IN ('swap', 'rollback', 'boot')),
  state TEXT NOT NULL CHECK (state IN
    ('loading', 'probation', 'committed', 'rolled_back', 'refused', 'interrupted')),
  run_id TEXT,
  reason TEXT,
  started_at TEXT NOT NULL,
  switched_at TEXT,
  decided_at TEXT,
  probation TEXT CHECK (json_valid(probation))
) STRICT;
CREATE INDEX swaps_to ON swaps (to_sha256);
CREATE INDEX swaps_from ON swaps (from_sha256);

CREATE TABLE commands (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE CHECK (id <> ''),
  op TEXT NOT NULL,
  payload TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('executing', 'successful', 'failed')),
  reason TEXT,
  received_at TEXT NOT NULL,
  ended_at TEXT
) STRICT;

-- What happened, for people. Messages to the fleet are in outbox.
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at TEXT NOT NULL,
  kind TEXT NOT NULL,
  text TEXT NOT NULL,
  detail TEXT CHECK (json_valid(detail))
) STRICT;

CREATE TABLE counters (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value) VALUES
  ('outbox_pending_messages', 0), ('outbox_pending_bytes', 0), ('outbox_replaced', 0),
  ('outbox_dropped_priority_0', 0), ('outbox_dropped_priority_1', 0),
  ('outbox_dropped_priority_2', 0);

CREATE TABLE outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  topic TEXT NOT NULL CHECK (topic <> ''),
  payload TEXT NOT NULL,
  qos INTEGER NOT NULL CHECK (qos IN (0, 1)),
  retain INTEGER NOT NULL CHECK (retain IN (0, 1)),
  priority INTEGER NOT NULL CHECK (priority IN (0, 1, 2)),
  created_at TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX outbox_order ON outbox (priority, id);
CREATE UNIQUE INDEX outbox_retained ON outbox (topic) WHERE retain = 1;

-- Summing the queue at every message would make a long outage slower the longer it lasts.
CREATE TRIGGER outbox_added AFTER INSERT ON outbox BEGIN
  UPDATE counters SET value = value + 1 WHERE name = 'outbox_pending_messages';
  UPDATE counters SET value = value + NEW.size_bytes WHERE name = 'outbox_pending_bytes';
END;
CREATE TRIGGER outbox_removed AFTER DELETE ON outbox BEGIN
  UPDATE counters SET value = value - 1 WHERE name = 'outbox_pending_messages';
  UPDATE counters SET value = value - OLD.size_bytes WHERE name = 'outbox_pending_bytes';
END;

-- Small facts that must outlive the process, by name (last scan, next run, …).
CREATE TABLE station_state (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK (json_valid(value)),
  updated_at TEXT NOT NULL
) STRICT;

-- The model that serves by the record of swaps; models/current on disk is the truth.
CREATE VIEW current_model AS
SELECT to_sha256 AS sha256, id AS swap_id FROM swaps
WHERE switched_at IS NOT NULL AND state NOT IN ('rolled_back', 'refused')
ORDER BY id DESC LIMIT 1;

CREATE VIEW v_runs AS
SELECT r.number, r.id AS run, r.kind, r.state, r.reason, r.created_at, r.ended_at,
  round((julianday(r.ended_at) - julianday(r.started_at)) * 1440, 1) AS minutes,
  CASE WHEN v.id IS NULL THEN NULL WHEN v.accepted = 0 THEN 'refused'
    WHEN v.on_probation = 1 THEN 'accepted on thin evidence' ELSE 'accepted' END AS verdict,
  (SELECT group_concat(value, '; ') FROM json_each(v.reasons)) AS reasons,
  round(100 * json_extract(v.metrics, '$.dense.accuracy'), 1) AS dense_accuracy_percent,
  round(100 * json_extract(v.metrics, '$.incumbent.accuracy'), 1) AS incumbent_accuracy_percent,
  round(100 * json_extract(v.metrics, '$.candidate.accuracy'), 1) AS candidate_accuracy_percent,
  round(100 * json_extract(v.metrics, '$.candidate.macroF1'), 1) AS candidate_macro_f1_percent,
  round(json_extract(v.metrics, '$.candidate.bytes') / 1e6, 2) AS candidate_size_mb,
  coalesce(p.stage, (SELECT name FROM run_stages WHERE run_id = r.id ORDER BY id DESC LIMIT 1))
    AS last_stage,
  round(100 * p.share, 1) AS progress_percent, r.seed, r.dir
FROM runs AS r LEFT JOIN verdicts AS v ON v.run_id = r.id
LEFT JOIN run_progress AS p ON p.run_id = r.id
ORDER BY r.number DESC;

CREATE VIEW v_models AS
SELECT m.number, substr(m.sha256, 1, 12) AS model, m.name,
  iif(m.sha256 = (SELECT sha256 FROM current_model), 'yes', 'no') AS serving,
  iif(m.present = 1, 'yes', 'no') AS on_disk,
  json_array_length(m.classes) AS class_count,
  (SELECT group_concat(value, ', ') FROM json_each(m.classes)) AS classes,
  round(100 * m.accuracy, 1) AS accuracy_percent, round(100 * m.macro_f1, 1) AS macro_f1_percent,
  m.parameters, m.nonzero, round(100.0 * (m.parameters - m.nonzero) / m.parameters, 1)
    AS zeros_percent,
  round(m.size_bytes / 1e6, 2) AS size_mb, round(m.latency_ms_p50, 1) AS latency_ms_p50,
  m.generalist, m.origin_run AS made_by_run, m.created_at,
  (SELECT count(*) FROM predictions WHERE model_sha256 = m.sha256) AS predictions, m.sha256
FROM models AS m ORDER BY m.number DESC;

-- A camera's time has no zone; where a picture carries none, the day of its prediction in UTC.
CREATE VIEW v_daily_species AS
SELECT substr(coalesce(m.captured_at, p.predicted_at), 1, 10) AS day, p.label,
  count(*) AS pictures, count(DISTINCT coalesce(m.burst_id, m.id)) AS bursts,
  round(100 * avg(p.probability), 1) AS mean_probability_percent
FROM predictions AS p JOIN media AS m ON m.id = p.media_id
GROUP BY 1, 2 ORDER BY 1 DESC, 3 DESC;

CREATE VIEW v_predictions AS
SELECT p.id AS number, m.path, m.captured_at, p.label,
  round(100 * p.probability, 1) AS probability_percent,
  l.label AS labeled_as, mo.name AS model, round(p.run_ms, 1) AS run_ms,
  round(p.decode_ms, 1) AS decode_ms, round(p.queued_ms, 1) AS queued_ms, p.predicted_at
FROM predictions AS p JOIN media AS m ON m.id = p.media_id
JOIN models AS mo ON mo.sha256 = p.model_sha256
LEFT JOIN current_labels AS l ON l.media_id = m.id
ORDER BY p.id DESC;

CREATE VIEW v_swaps AS
SELECT s.id AS number, s.kind, s.state, f.name AS from_model, t.name AS to_model, s.reason,
  s.started_at, s.switched_at, s.decided_at, s.run_id AS run, s.probation,
  substr(s.from_sha256, 1, 12) AS from_sha256, substr(s.to_sha256, 1, 12) AS to_sha256
FROM swaps AS s JOIN models AS t ON t.sha256 = s.to_sha256
LEFT JOIN models AS f ON f.sha256 = s.from_sha256
ORDER BY s.id DESC;

CREATE VIEW v_quarantine AS
SELECT q.id AS number, q.path, q.reason, q.quarantined_path, round(q.size_bytes / 1e3, 1)
  AS size_kb, q.at, m.sha256
FROM quarantine AS q LEFT JOIN media AS m ON m.id = q.media_id
ORDER BY q.id DESC;

CREATE VIEW v_labels AS
SELECT l.id AS number, m.path, l.label, l.source AS said_by, l.origin, l.at,
  p.label AS predicted_as, iif(p.label IS NULL, NULL, iif(p.label = l.label, 'yes', 'no'))
    AS agrees, m.burst_id AS burst, b.role
FROM current_labels AS l JOIN media AS m ON m.id = l.media_id
LEFT JOIN predictions AS p ON p.media_id = m.id
LEFT JOIN bursts AS b ON b.id = m.burst_id
ORDER BY l.id DESC;
`;
