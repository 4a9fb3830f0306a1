import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";

const ROOT = join(import.meta.dirname, "..", "..");
const UNITS = readdirSync(join(ROOT, "systemd")).sort();

/** The script and all it copies, with a program of one line in place of the built one. */
function checkout(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), "taco-install-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const source = join(folder, "source");
  for (const part of ["systemd", "config", "scripts/install.sh", "package.json"]) {
    cpSync(join(ROOT, part), join(source, part), { recursive: true });
  }
  const write = (path: string, text: string) => {
    mkdirSync(join(source, path, ".."), { recursive: true });
    writeFileSync(join(source, path), text);
  };
  write("dist/main.js", "#!/usr/bin/env node\nconsole.log('one');\n");
  write("node_modules/yaml/index.js", "");
  const destdir = join(folder, "root");
  const install = (args: string[], environment: NodeJS.ProcessEnv = { DESTDIR: destdir }) =>
    spawnSync(join(source, "scripts", "install.sh"), args, {
      env: { PATH: process.env["PATH"], ...environment },
      encoding: "utf8",
    });
  const ok = (...args: string[]) => {
    const { status, stdout, stderr } = install(args);
    assert.equal(status, 0, stdout + stderr);
    return stdout;
  };
  const at = (path: string) => join(destdir, path);
  const read = (path: string) => readFileSync(at(path), "utf8");
  return { folder, write, install, ok, at, read };
}

test("install: program, units, configuration and command are there, and twice is once", (t) => {
  const { ok, at, read, write } = checkout(t);
  ok("--no-build");
  const files = () =>
    readdirSync(at("/"), { recursive: true, encoding: "utf8" })
      .filter((path) => !path.includes("node_modules"))
      .sort();
  const first = files();
  assert.deepEqual(readdirSync(at("/etc/systemd/system")).sort(), UNITS);
  assert.ok(existsSync(at("/opt/taco-agent/node_modules/yaml/index.js")));
  assert.equal(readlinkSync(at("/usr/local/bin/taco")), "/opt/taco-agent/dist/main.js");
  assert.match(read("/etc/taco-agent/station.yaml"), /^# yaml-language-server/);
  assert.equal(statSync(at("/etc/taco-agent/mqtt-password")).mode & 0o777, 0o600);
  assert.equal(statSync(at("/opt/taco-agent/dist/main.js")).mode & 0o111, 0o111);

  writeFileSync(at("/etc/taco-agent/station.yaml"), "station: { id: mine, dir: /var }\n");
  writeFileSync(at("/etc/taco-agent/mqtt-password"), "secret");
  write("dist/main.js", "#!/usr/bin/env node\nconsole.log('two');\n");
  ok("--no-build");
  assert.deepEqual(files(), first);
  assert.match(read("/opt/taco-agent/dist/main.js"), /two/);
  assert.match(read("/etc/taco-agent/station.yaml"), /mine/);
  assert.equal(read("/etc/taco-agent/mqtt-password"), "secret");
});

test("install: the unit gets the real node and the prefix", (t) => {
  const { ok, read, at } = checkout(t);
  ok("--no-build", "--prefix", "/srv/taco/");
  const unit = read("/etc/systemd/system/taco-agent.service");
  const start = /^ExecStart=(\S+) (\S+) run --config \/etc\/taco-agent\/station\.yaml$/m.exec(unit);
  assert.ok(start, unit);
  assert.ok(existsSync(start[1] ?? ""));
  assert.equal(start[2], "/srv/taco/dist/main.js");
  assert.ok(!unit.includes("/opt/taco-agent"));
  assert.ok(existsSync(at("/srv/taco/dist/main.js")));
});

test("install: --config replaces the configuration and keeps the one before", (t) => {
  const { ok, read, folder } = checkout(t);
  const mine = join(folder, "mine.yaml");
  ok("--no-build");
  for (const id of ["a", "b", "b"]) {
    writeFileSync(mine, `station: { id: ${id}, dir: /var/lib/taco-agent }\n`);
    ok("--no-build", "--config", mine);
  }
  assert.match(read("/etc/taco-agent/station.yaml"), /id: b/);
  assert.match(read("/etc/taco-agent/station.yaml.bak"), /id: a/);
});

test("install: --uninstall leaves configuration and state, --purge leaves nothing", (t) => {
  const { ok, at } = checkout(t);
  ok("--no-build");
  writeFileSync(at("/var/lib/taco-agent/taco.db"), "state");
  ok("--uninstall");
  assert.deepEqual(readdirSync(at("/etc/systemd/system")), []);
  assert.ok(!existsSync(at("/opt/taco-agent")) && !existsSync(at("/usr/local/bin/taco")));
  assert.ok(existsSync(at("/var/lib/taco-agent/taco.db")));
  assert.ok(existsSync(at("/etc/taco-agent/station.yaml")));
  ok("--uninstall");
  ok("--uninstall", "--purge");
  assert.ok(!existsSync(at("/var/lib/taco-agent")) && !existsSync(at("/etc/taco-agent")));
});

test("install: a folder of somebody else is neither replaced nor removed", (t) => {
  const { install, at } = checkout(t);
  mkdirSync(at("/usr/lib"), { recursive: true });
  for (const args of [["--no-build"], ["--uninstall"]]) {
    const { status, stderr } = install([...args, "--prefix", "/usr"]);
    assert.equal(status, 1);
    assert.match(stderr, /was not made by this script/);
  }
  assert.ok(existsSync(at("/usr/lib")));
});

test("install: says what is wrong with the arguments or the checkout", (t) => {
  const { install, folder } = checkout(t);
  const cases: [string[], RegExp][] = [
    [["--prefix"], /expected a value after --prefix/],
    [["--prefix", "opt"], /expected an absolute --prefix, got opt/],
    [["--prefix", "/opt/a b"], /expected a --prefix of letters/],
    [["--prefix", "/home/me/taco"], /cannot see/],
    [["--purge"], /goes with --uninstall/],
    [["--colour"], /unknown argument --colour/],
    [["--no-build", "--config", "/no/such.yaml"], /found no configuration/],
  ];
  for (const [args, expected] of cases) {
    const { status, stderr } = install(args);
    assert.equal(status, 1, args.join(" "));
    assert.match(stderr, expected);
  }
  rmSync(join(folder, "source", "dist"), { recursive: true });
  assert.match(install(["--no-build"]).stderr, /found no .*dist\/main\.js/);
});

const SETPRIV = "/usr/bin/setpriv";
const canDropRoot =
  process.getuid?.() === 0 && spawnSync(SETPRIV, ["--version"]).status === 0
    ? false
    : "needs root and setpriv, to try it without root";

test("install: without root it says so and changes nothing", { skip: canDropRoot }, (t) => {
  const { folder } = checkout(t);
  chmodSync(folder, 0o755);
  const script = join(folder, "source", "scripts", "install.sh");
  const { status, stderr } = spawnSync(
    SETPRIV,
    ["--reuid=65534", "--clear-groups", script, "--no-build"],
    { env: { PATH: process.env["PATH"] }, encoding: "utf8" },
  );
  assert.equal(status, 1);
  assert.match(stderr, /needs root .*run it with sudo/);
});
