//! Programs that people run, from Debian's packages, in both isolations: PostgreSQL, nginx, Redis and a Python web app. Their data are on volumes
//! that move between the isolations, and nothing that was committed is lost with a killed monitor.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::debian::{must, programs, root};
use crate::inventory::{inventory, must_equal};
use crate::neighbour::{ask_tcp, free_port};
use crate::runner::{Case, Need, Verdict};
use crate::volumes::{kill, monitor_of};

const NEEDS: &[Need] = &[
    Need::Host,
    Need::Root,
    Need::Kvm,
    Need::CgroupV2,
    Need::Alone,
    Need::Store,
    Need::Program("mke2fs"),
    Need::Program("passt"),
];
const BUILD_NEEDS: &[Need] = &[Need::Outside, Need::Root, Need::Program("mmdebstrap"), Need::Program("umoci")];
const BOTH: [&str; 2] = ["container", "microvm"];

/// How long anything may take in an emulated host.
const PATIENCE: Duration = Duration::from_secs(120);

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[Case] = &[
            Case { name: "programs::an_image_of_packages_is_taken_in", needs: BUILD_NEEDS, run: || { programs(); Verdict::Ok(()) } },
            $(Case { name: concat!("programs::", stringify!($name)), needs: NEEDS, run: || { $name(&Place::new()); Verdict::Ok(()) } }),*
        ];
    };
}

cases![
    postgresql_keeps_its_data_in_every_isolation,
    nginx_serves_a_client_of_the_host,
    redis_finds_its_data_again,
    a_python_web_app_counts_on,
];

/// The tests' store, with the image in it, and a state folder of the case's own.
struct Place {
    folder: tempfile::TempDir,
    image: &'static str,
    before: BTreeSet<String>,
}

impl Place {
    fn new() -> Self {
        let image = programs();
        let place = Self { folder: tempfile::tempdir().unwrap(), image, before: BTreeSet::new() };
        // What a run that failed has left, and the folders that every run makes.
        place.say(&["volume", "prune", "-af"]);
        place.say(&["run", "--rm", "--isolation", "container", image, "true"]);
        let before = place.inventory();
        Self { before, ..place }
    }

    fn volumes() -> PathBuf {
        root().join("target/test-store/volumes")
    }

    fn inventory(&self) -> BTreeSet<String> {
        inventory(&[self.folder.path(), &Self::volumes()])
    }

    #[track_caller]
    fn must_be_clean(&self, what: &str) {
        must_equal(&self.before, &[self.folder.path(), &Self::volumes()], what);
    }

    fn duplex(&self, words: &[&str]) -> Command {
        let mut command = crate::debian::duplex();
        command.env("DUPLEX_STATE", self.folder.path()).args(words).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn say(&self, words: &[&str]) -> String {
        must(&mut self.duplex(words)).trim_end().to_owned()
    }

    /// Starts it in the background.
    #[track_caller]
    fn run(&self, isolation: &str, options: &[&str], command: &[&str]) {
        let front = ["run", "-d", "--isolation", isolation];
        self.say(&[&front, options, &[self.image], command].concat());
    }

    /// Waits until this command succeeds in the sandbox; what it then says.
    #[track_caller]
    fn until(&self, name: &str, command: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.duplex(&[&["exec", name], command].concat()).output().unwrap();
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
            }
            let logs = || self.duplex(&["logs", name]).output().unwrap();
            assert!(Instant::now() < deadline, "{command:?}: {output:?}; {name} says {:?}", logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Stops it, which it must do by itself and in order, and removes it.
    #[track_caller]
    fn end(&self, name: &str) {
        self.say(&["stop", "-t", "60", name]);
        assert_eq!(self.say(&["inspect", "-f", "{{.State.ExitCode}}", name]), "0", "{}", self.say(&["logs", name]));
        self.say(&["rm", name]);
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// PostgreSQL's programs.
const PG: &str = "/usr/lib/postgresql/15/bin";
const DATA: &str = "/var/lib/postgresql";

/// A sandbox with PostgreSQL; its volume is where the image has a folder of the user's. SIGINT is "fast shutdown".
fn postgres(place: &Place, isolation: &str) {
    let volume = format!("pg:{DATA}");
    let options =
        ["--name", "db", "-u", "postgres", "-v", &volume, "--net", "none", "--stop-signal", "INT", "-m", "512m"];
    let script = format!(
        "cd {DATA} && [ -e data ] || {{ {PG}/initdb --no-instructions -A trust -D new >&2 && mv new data; }} && \
        exec {PG}/postgres -D data -k /tmp -c jit=off -c listen_addresses="
    );
    place.run(isolation, &options, &["sh", "-c", &script]);
    place.until("db", &["pg_isready", "-q", "-h", "/tmp"]);
}

#[track_caller]
fn sql(place: &Place, statement: &str) -> String {
    place.say(&["exec", "db", "psql", "-h", "/tmp", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement])
}

#[track_caller]
fn pgbench(place: &Place) {
    place.say(&["exec", "db", "pgbench", "-h", "/tmp", "-n", "-c", "2", "-T", "3", "postgres"]);
}

/// What pgbench leaves is one sum in four tables, whatever it did; and how much that was.
#[track_caller]
fn balance(place: &Place) -> String {
    let sums = sql(
        place,
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), \
        (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history), \
        (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), \
        (select count(*) from pgbench_accounts), (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)",
    );
    assert!(sums.starts_with("t|t|t|100000|"), "{sums}");
    sums
}

fn postgresql_keeps_its_data_in_every_isolation(place: &Place) {
    place.say(&["volume", "create", "--size", "256m", "pg"]);
    postgres(place, "container");
    place.say(&["exec", "db", "pgbench", "-h", "/tmp", "-q", "-i", "-s", "1", "postgres"]);
    pgbench(place);
    let after_load = balance(place);
    place.end("db");

    postgres(place, "microvm");
    assert_eq!(balance(place), after_load, "what the container wrote, in the microVM");
    pgbench(place);
    let before_kill = balance(place);
    assert_ne!(before_kill, after_load);
    sql(place, "create table told (n int primary key)");
    let told = killed_while_writing(place);

    // On its volume again: PostgreSQL recovers, and every row whose commit was told is there.
    place.say(&["start", "db"]);
    place.until("db", &["pg_isready", "-q", "-h", "/tmp"]);
    let rows = sql(place, "select count(*), max(n) from told");
    let (count, last) = rows.split_once('|').unwrap();
    assert!(count == last && last.parse::<u64>().unwrap() >= told, "{told} rows were told, {rows} are there");
    assert_eq!(balance(place), before_kill, "what was there before the kill");
    place.end("db");

    postgres(place, "container");
    assert_eq!((sql(place, "select count(*), max(n) from told"), balance(place)), (rows, before_kill), "back");
    place.end("db");
    place.say(&["volume", "rm", "pg"]);
    place.must_be_clean("PostgreSQL");
}

/// Kills the monitor while rows are committed, each by itself; the last one whose commit was told.
fn killed_while_writing(place: &Place) -> u64 {
    let mut command = place.duplex(&["exec", "-i", "db", "psql", "-h", "/tmp", "-qAtX"]);
    let mut psql = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    // It ends with the pipe.
    let writer = std::thread::spawn(move || {
        (1..).find(|n: &u64| writeln!(stdin, "insert into told values ({n}) returning n;").is_err());
    });
    let mut lines = BufReader::new(psql.stdout.take().unwrap()).lines();
    let mut told = 0;
    while told < 25 {
        told = lines.next().expect("psql goes on").unwrap().parse().unwrap();
    }
    kill(monitor_of(&place.say(&["inspect", "-f", "{{.State.Pid}}", "db"])));
    let rest = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).max();
    psql.wait().unwrap();
    writer.join().unwrap();
    place.say(&["wait", "db"]);
    rest.unwrap_or(told)
}

fn nginx_serves_a_client_of_the_host(place: &Place) {
    for isolation in BOTH {
        let port = free_port();
        let published = format!("127.0.0.1:{port}:80");
        // SIGQUIT lets it finish what it serves.
        let options = ["--name", "web", "-p", &published, "--stop-signal", "QUIT"];
        place.run(isolation, &options, &["nginx", "-g", "daemon off;"]);
        let page = ask_tcp(local(port), "GET / HTTP/1.0\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\nServer: nginx") && page.contains("Welcome to nginx!"), "{page}");
        for _ in 0..10 {
            assert_eq!(ask_tcp(local(port), "GET / HTTP/1.0\r\n\r\n").len(), page.len(), "{isolation}");
        }
        let missing = ask_tcp(local(port), "GET /no/such HTTP/1.0\r\n\r\n");
        assert!(missing.starts_with("HTTP/1.1 404 Not Found\r\n"), "{missing}");
        place.end("web");
        place.must_be_clean(isolation);
    }
}

fn redis_finds_its_data_again(place: &Place) {
    place.say(&["volume", "create", "--size", "64m", "redis"]);
    let cli = |words: &[&str]| place.say(&[&["exec", "cache", "redis-cli"], words].concat());
    for (turn, isolation) in ["container", "microvm", "container"].into_iter().enumerate() {
        let options = ["--name", "cache", "-v", "redis:/var/lib/redis", "-u", "redis", "--net", "none"];
        let server = ["redis-server", "--dir", "/var/lib/redis", "--appendonly", "yes", "--save", ""];
        place.run(isolation, &options, &server);
        place.until("cache", &["redis-cli", "ping"]);
        let expected: Vec<String> = (0..turn).map(|n| n.to_string()).collect();
        assert_eq!(cli(&["lrange", "turns", "0", "-1"]), expected.join("\n"), "{isolation}");
        assert_eq!(cli(&["rpush", "turns", &turn.to_string()]), (turn + 1).to_string());
        place.say(&["exec", "cache", "redis-benchmark", "-q", "-n", "300", "-c", "5", "-t", "set,lpush"]);
        // On its volume again in the same isolation, too.
        place.say(&["restart", "cache"]);
        place.until("cache", &["redis-cli", "ping"]);
        assert_eq!(cli(&["llen", "turns"]), (turn + 1).to_string(), "{isolation}");
        place.end("cache");
    }
    place.say(&["volume", "rm", "redis"]);
    place.must_be_clean("Redis");
}

/// Counts its visitors in SQLite.
const APP: &str = "
import flask, signal, sqlite3, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
app = flask.Flask('visits')
@app.route('/visits/<name>')
def visits(name):
    with sqlite3.connect('/srv/visits.db') as db:
        db.execute('create table if not exists visits (name)')
        db.execute('insert into visits values (?)', (name,))
        count, = db.execute('select count(*) from visits where name = ?', (name,)).fetchone()
    return flask.jsonify(name=name, visits=count)
app.run('0.0.0.0', 8000)
";

fn a_python_web_app_counts_on(place: &Place) {
    place.say(&["volume", "create", "--size", "64m", "visits"]);
    for (turn, isolation) in BOTH.into_iter().enumerate() {
        let port = free_port();
        let published = format!("127.0.0.1:{port}:8000");
        let options = ["--name", "app", "-v", "visits:/srv", "-p", &published];
        place.run(isolation, &options, &["python3", "-c", APP]);
        for visit in 1..=3 {
            let answer = ask_tcp(local(port), "GET /visits/ann HTTP/1.0\r\n\r\n");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK"), "{isolation}: {answer}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body, serde_json::json!({ "name": "ann", "visits": 3 * turn + visit }), "{isolation}");
        }
        place.end("app");
    }
    place.say(&["volume", "rm", "visits"]);
    place.must_be_clean("the web app");
}
