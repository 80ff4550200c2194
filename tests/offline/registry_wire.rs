//! Scripts of a registry that has a good image and says it badly: connections, HTTP, redirects, refusals, tokens.

use std::sync::Arc;
use std::time::Duration;

use crate::hostile_registry::{Script, refused, taken};
use crate::scripted_registry::{Ask, Part, Step, good, reply};

const PARTS: [(&str, Part); 3] = [("manifest", Part::Manifest), ("config", Part::Config), ("layer", Part::Layer)];

/// A script that changes the answers to requests for this part.
fn at(part: Part, act: impl Fn(&Ask) -> Vec<Step> + Send + Sync + 'static) -> crate::scripted_registry::Act {
    Arc::new(move |ask| (ask.part == part).then(|| act(ask)))
}

/// Refused with these words, or taken if there are none.
fn outcome(name: &str, words: &[&'static str], act: crate::scripted_registry::Act) -> Script {
    if words.is_empty() { taken(name, act) } else { refused(name, words, act) }
}

fn send(bytes: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Send(bytes.into())]
}

/// The head and the body of a good answer.
fn halves(ask: &Ask) -> (Vec<u8>, Vec<u8>) {
    let whole = good(ask);
    let at = whole.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    (whole[..at].to_vec(), whole[at..].to_vec())
}

/// A head with these lines, and the good body.
fn headed(ask: &Ask, lines: &str) -> Vec<Step> {
    send([format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes(), &ask.body].concat())
}

fn chunked(ask: &Ask, body: &[u8]) -> Vec<Step> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n", ask.kind);
    send([head.as_bytes(), body].concat())
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// The connection itself, for each kind of request.
pub(crate) fn connections() -> Vec<Script> {
    let mut scripts = Vec::new();
    for (name, part) in PARTS {
        let broken = "Cannot reach registry";
        let mut add = |what: &str, words: &[&'static str], act: fn(&Ask) -> Vec<Step>| {
            scripts.push(refused(&format!("{name}: {what}"), words, at(part, act)));
        };
        add("closed without a word", &[broken], |_| Vec::new());
        add("never answered", &["stalled"], |_| vec![Step::Hold]);
        add("another protocol", &[broken], |_| send("SSH-2.0-OpenSSH_9.2\r\n"));
        add("half a status line", &[broken], |_| send("HTTP/1.1 20"));
        add("a status of four digits", &[broken], |_| send("HTTP/1.1 2000 OK\r\n\r\n"));
        add("a head without end", &[broken], |_| {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), Step::Repeat(vec![b'x'; 1 << 16], 1 << 10)]
        });
        add("a head and silence", &["stalled"], |ask| vec![Step::Send(halves(ask).0), Step::Hold]);
        // A config is so short that it is whole before the patience with it is over.
        if part != Part::Config {
            add("a body that drips", &["stalled"], |ask| {
                let (head, body) = halves(ask);
                vec![Step::Send(head), Step::Drip(body, Duration::from_millis(30))]
            });
        }
        add("ten thousand headers", &[broken], |ask| headed(ask, &"X-A: b\r\n".repeat(10_000)));
        add("provisional answers for ever", &["stalled"], |_| {
            vec![Step::Repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec(), 1 << 40)]
        });
    }
    scripts
}

/// Lengths and framing, for each kind of request.
pub(crate) fn framing() -> Vec<Script> {
    let mut scripts = Vec::new();
    for (name, part) in PARTS {
        let cut: &[&str] = if part == Part::Manifest { &["Cannot reach registry"] } else { &["cut", "short"] };
        let length: &[&str] = if part == Part::Manifest { &["longer than 4194304"] } else { &["announces"] };
        let broken: &[&str] = &["Cannot reach registry"];
        let mut add = |what: &str, words: &[&'static str], act: fn(&Ask) -> Vec<Step>| {
            scripts.push(outcome(&format!("{name}: {what}"), words, at(part, act)));
        };
        add("cut in the middle", cut, |ask| {
            let whole = good(ask);
            send(&whole[..whole.len() - ask.body.len() / 2])
        });
        add("a length below zero", broken, |ask| headed(ask, "Content-Length: -5\r\n"));
        add("a length of no number", broken, |ask| headed(ask, "Content-Length: 0x40\r\n"));
        add("two lengths", broken, |ask| {
            headed(ask, &format!("Content-Length: {}\r\nContent-Length: 3\r\n", ask.body.len()))
        });
        add("a length near 2^62", length, |ask| headed(ask, "Content-Length: 4611686018427387903\r\n"));
        add("a length near 2^64", broken, |ask| headed(ask, "Content-Length: 18446744073709551614\r\n"));
        add("a length beyond 2^64", broken, |ask| headed(ask, "Content-Length: 18446744073709551616\r\n"));
        add("no length at all", &[], |ask| headed(ask, ""));
        add("HTTP/1.0", &[], |ask| send([b"HTTP/1.0 200 OK\r\n\r\n", &ask.body[..]].concat()));
        add("in chunks", &[], |ask| {
            let pieces: Vec<u8> = ask.body.chunks(77).flat_map(chunk).collect();
            chunked(ask, &[&pieces[..], b"0\r\nX-Trailer: y\r\n\r\n"].concat())
        });
        add("chunks without an end", cut, |ask| chunked(ask, &chunk(&ask.body[..ask.body.len() - 1])));
        add("a chunk of nonsense", cut, |ask| chunked(ask, &[&b"zz\r\n"[..], &ask.body].concat()));
        add("a chunk near 2^64", cut, |ask| chunked(ask, &[&b"fffffffffffffffe\r\n"[..], &ask.body].concat()));
        add("a chunk beyond 2^64", cut, |ask| chunked(ask, &[&b"fffffffffffffffff\r\n"[..], &ask.body].concat()));
        add("a chunk size with a novel behind it", cut, |ask| {
            let head = [&b"5;"[..], &vec![b'x'; 1 << 20], b"\r\n"].concat();
            chunked(ask, &[&head, &ask.body[..]].concat())
        });
        add("chunks and a length", &[], |ask| {
            let lines = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n";
            let body = [&chunk(&ask.body)[..], b"0\r\n\r\n"].concat();
            send([format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes(), &body].concat())
        });
        add("two answers to one request", &[], |ask| send([good(ask), reply("200 OK", &[], b"second")].concat()));
        add("said to be packed", &[], |ask| {
            headed(ask, &format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", ask.body.len()))
        });
        add("headers that are no text", &[], |ask| {
            let head = format!("HTTP/1.1 200 \u{fffd}\r\nContent-Length: {}\r\n", ask.body.len()).into_bytes();
            send([&head[..], b"Docker-Content-Digest: \xff\xfe\r\nContent-Type: \xc3\x28\r\n\r\n", &ask.body].concat())
        });
    }
    scripts
}

fn to(location: &str) -> Vec<Step> {
    send(reply("307 Temporary Redirect", &[("Location", location)], b""))
}

/// Redirects, for each kind of request.
pub(crate) fn redirects() -> Vec<Script> {
    let mut scripts = Vec::new();
    for (name, part) in PARTS {
        let mut add = |what: &str, words: &[&'static str], act: fn(&Ask) -> Vec<Step>| {
            scripts.push(outcome(&format!("{name}: redirect {what}"), words, at(part, act)));
        };
        let plain: &[&str] = &["something other than https"];
        let inside: &[&str] = &["only this host"];
        add("to itself", &["too many redirects"], |ask| to(&ask.path));
        add("from step to step", &["too many redirects"], |ask| to(&format!("{}?x", ask.path)));
        add("to nowhere", &["answers 302"], |_| send(reply("302 Found", &[], b"")));
        add("to what is no address", &["answers 307"], |_| to("http://[::1"));
        add("to a file", &["answers 307"], |_| to("file:///etc/passwd"));
        add("to data", &["answers 307"], |_| to("data:text/plain,hello"));
        add("to another protocol", plain, |_| to("gopher://127.0.0.1:25/_HELO"));
        add("to plain http elsewhere", plain, |_| to("http://registry.invalid/v2/"));
        add("to plain http at an address", plain, |_| to("http://192.0.2.1/v2/"));
        add("to where clouds keep credentials", plain, |_| to("http://169.254.169.254/latest/meta-data/"));
        add("there by https", inside, |_| to("https://169.254.169.254/latest/meta-data/"));
        add("there in other digits", inside, |_| to("https://0xa9fea9fe/latest/meta-data/"));
        add("there by IPv6", inside, |_| to("https://[::ffff:169.254.169.254]/latest/"));
        add("to the link", inside, |_| to("https://[fe80::1]/"));
        add("to no address", inside, |_| to("https://0.0.0.0/"));
        add("to https that is none", &["Cannot reach registry"], |ask| {
            to(&format!("https://127.0.0.2:{}/", ask.elsewhere))
        });
        add("to another server of this machine", &[], |ask| {
            to(&format!("http://127.0.0.2:{}{}", ask.elsewhere, ask.path))
        });
    }
    scripts
}

/// Answers other than success, for each kind of request.
pub(crate) fn statuses() -> Vec<Script> {
    let mut scripts = Vec::new();
    for (name, part) in PARTS {
        let mut add = |what: &str, words: &[&'static str], act: fn(&Ask) -> Vec<Step>| {
            scripts.push(refused(&format!("{name}: {what}"), words, at(part, act)));
        };
        add("404", &["(404): check the name"], |_| send(reply("404 Not Found", &[], b"")));
        add("403", &["anonymous users (403)"], |_| send(reply("403 Forbidden", &[], b"")));
        add("418 with escapes", &["answers 418", "[31mred"], |_| {
            send(reply(
                "418 Teapot",
                &[],
                b"{\"errors\":[{\"message\":\"\x1b[31mred\x1b]0;title\x07\r\n\xc2\x9b2J\xe2\x80\xae\"}]}",
            ))
        });
        add("500 with a novel", &["answers 500"], |_| send(reply("500 Oops", &[], &vec![b'n'; 8 << 20])));
        add("503 that drips", &["answers 503"], |_| {
            let head = b"HTTP/1.1 503 Later\r\nContent-Length: 500\r\n\r\n".to_vec();
            vec![Step::Send(head), Step::Drip(vec![b'x'; 500], Duration::from_millis(60))]
        });
        add("599", &["answers 599"], |_| send(reply("599 Own", &[], b"")));
        add("429 for a minute", &["try again after 60 s"], |_| send(reply("429 Slow", &[("Retry-After", "60")], b"")));
        add("429 for ever", &["(429)\n"], |_| send(reply("429 Slow", &[("Retry-After", "99999999999999999999")], b"")));
        add("429 with a novel", &["(429)\n"], |_| {
            send(reply("429 Slow", &[("Retry-After", &"x".repeat(100_000))], b""))
        });
        add("nothing (204)", if part == Part::Manifest { &["answers 204"] } else { &["announces 0"] }, |_| {
            send(reply("204 Nothing", &[], b""))
        });
        add("not changed (304)", &["answers 304"], |_| send(reply("304 Same", &[], b"")));
        add("switched to something else", &["answers 101"], |_| {
            send("HTTP/1.1 101 Switching\r\nUpgrade: smtp\r\nConnection: upgrade\r\n\r\n")
        });
        add("a part that nobody asked for", if part == Part::Manifest { &["answers 206"] } else { &["cut"] }, |ask| {
            let half = ask.body.len() / 2;
            let range = format!("bytes {half}-{}/{}", ask.body.len() - 1, ask.body.len());
            send(reply("206 Part", &[("Content-Range", &range)], &ask.body[half..]))
        });
    }
    scripts
}

/// A layer that breaks off, and what comes when it is taken up again.
pub(crate) fn resumes() -> Vec<Script> {
    let mut scripts = Vec::new();
    let mut add = |what: &str, words: &[&'static str], again: fn(&Ask) -> Vec<Step>| {
        let act = at(Part::Layer, move |ask| {
            if ask.before == 0 {
                let whole = good(ask);
                return send(&whole[..whole.len() - 10_000]);
            }
            again(ask)
        });
        let name = format!("layer taken up again: {what}");
        scripts.push(outcome(&name, words, act));
    };
    add("well", &[], |ask| send(good(ask)));
    add("from the start", &[], |ask| send(reply("200 OK", &[], &ask.body)));
    add("from elsewhere in it", &["cut"], |ask| {
        let all = ask.body.len();
        send(reply(
            "206 Part",
            &[("Content-Range", &format!("bytes {}-{}/{all}", all - 5, all - 1))],
            &ask.body[all - 5..],
        ))
    });
    add("without saying from where", &["cut"], |ask| send(reply("206 Part", &[], &ask.body[30_000..])));
    add("from no number", &["cut"], |ask| send(reply("206 Part", &[("Content-Range", "bytes x-y/z")], &ask.body)));
    add("from below zero", &["cut"], |ask| send(reply("206 Part", &[("Content-Range", "bytes -1-9/10")], &ask.body)));
    add("in several parts", &["cut"], |ask| {
        send(reply("206 Part", &[("Content-Type", "multipart/byteranges; boundary=b")], &ask.body))
    });
    add("with other bytes", &["Wrong digest of layer"], |ask| {
        let other = Ask { body: vec![7; ask.body.len()], ..ask.clone() };
        send(good(&other))
    });
    add("with too many", &["announces"], |ask| {
        let other = Ask { body: [&ask.body[..], b"more"].concat(), ..ask.clone() };
        send(good(&other))
    });
    add("out of range", &["answers 416"], |_| send(reply("416 Range", &[], b"")));
    add("byte by byte, for ever cut", &["cut", "short"], |ask| {
        let whole = good(ask);
        let head = whole.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        send(&whole[..head + 1])
    });
    add("with a demand for a password", &["anonymous users (401)"], |_| {
        send(reply("401 Who", &[("WWW-Authenticate", "Basic realm=\"x\"")], b""))
    });
    scripts
}

/// Who asks for a token, and what comes then. `{}` of the challenge is this registry.
fn token(name: &str, words: &[&'static str], challenge: &'static str, answer: fn(&Ask) -> Vec<Step>) -> Script {
    let act = Arc::new(move |ask: &Ask| {
        if ask.path.starts_with("/token") {
            return Some(answer(ask));
        }
        let value = challenge.replace("{}", &format!("127.0.0.1:{}", ask.port));
        let value = value.replace("[]", &format!("127.0.0.2:{}", ask.elsewhere));
        (!ask.headers.contains_key("authorization"))
            .then(|| send(reply("401 Who", &[("WWW-Authenticate", &value)], b"")))
    });
    let name = format!("token: {name}");
    outcome(&name, words, act)
}

const BEARER: &str = "Bearer realm=\"http://{}/token\",service=\"me\"";

pub(crate) fn challenges() -> Vec<Script> {
    let ok = |_: &Ask| send(reply("200 OK", &[], br#"{"token":"abc"}"#));
    let realm = "in a way that is not followed";
    vec![
        token("as it should be", &[], BEARER, ok),
        token("no challenge", &["anonymous users (401)"], "", ok),
        token("a scheme that nobody knows", &["anonymous users (401)"], "Negotiate abc==", ok),
        token("a challenge without realm", &["anonymous users (401)"], "Bearer service=\"x\"", ok),
        token("a quote without end", &["anonymous users (401)"], "Bearer realm=\"http://{}/token", ok),
        token("a realm of no address", &[realm, "not a URL"], "Bearer realm=\"nowhere\"", ok),
        token("a realm that is a file", &[realm, "not https"], "Bearer realm=\"file:///etc/shadow\"", ok),
        token("a realm of script", &[realm, "not https"], "Bearer realm=\"javascript:alert(1)\"", ok),
        token("a realm by plain http", &[realm, "not https"], "Bearer realm=\"http://registry.invalid/token\"", ok),
        token(
            "a realm where clouds keep credentials",
            &[realm, "not https"],
            "Bearer realm=\"http://169.254.169.254/latest/api/token\"",
            ok,
        ),
        token("the same by https", &[realm, "only this host"], "Bearer realm=\"https://169.254.169.254/token\"", ok),
        token(
            "a realm that only looks like loopback",
            &[realm, "not https"],
            "Bearer realm=\"http://127.0.0.1@registry.invalid/token\"",
            ok,
        ),
        token("a realm that is https and is none", &["Cannot reach registry"], "Bearer realm=\"https://{}/token\"", ok),
        token(
            "more scope than was asked for",
            &[],
            "Bearer realm=\"http://{}/token\",scope=\"repository:x:push,pull registry:catalog:*\"",
            ok,
        ),
    ]
}

pub(crate) fn tokens() -> Vec<Script> {
    let json = "the token is not in JSON";
    let redirect = |ask: &Ask| to(&format!("http://127.0.0.1:{}{}x", ask.port, ask.path));
    vec![
        token("not JSON", &[json], BEARER, |_| send(reply("200 OK", &[], b"<html>log in</html>"))),
        token("a list", &[json], BEARER, |_| send(reply("200 OK", &[], b"[[[[]]]]"))),
        token("a number", &[json], BEARER, |_| send(reply("200 OK", &[], br#"{"token":1}"#))),
        token("twice", &[json], BEARER, |_| send(reply("200 OK", &[], br#"{"token":"a","token":"b"}"#))),
        token("none", &["no token in the answer"], BEARER, |_| send(reply("200 OK", &[], b"{}"))),
        token("with a new line", &["the token is not text"], BEARER, |_| {
            send(reply("200 OK", &[], br#"{"token":"abc\r\nX-Evil: 1"}"#))
        }),
        token("of other letters", &["the token is not text"], BEARER, |_| {
            send(reply("200 OK", &[], "{\"token\":\"t\u{f6}ken\"}".as_bytes()))
        }),
        token("of 100 MiB", &["a token from registry", "longer than 262144"], BEARER, |_| {
            vec![Step::Send(b"HTTP/1.1 200 OK\r\n\r\n{\"token\":\"".to_vec()), Step::Repeat(vec![b'x'; 1 << 20], 100)]
        }),
        token("nested without end", &[json], BEARER, |_| send(reply("200 OK", &[], &vec![b'['; 200_000]))),
        token("never", &["stalled", "a token"], BEARER, |_| vec![Step::Hold]),
        token("by drops", &["stalled", "a token"], BEARER, |_| {
            let head = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            vec![Step::Send(head), Step::Drip(vec![b' '; 10_000], Duration::from_millis(30))]
        }),
        token("for a password", &["anonymous users (401)"], BEARER, |_| send(reply("401 Who", &[], b""))),
        token("fails", &["answers 500", "a token"], BEARER, |_| send(reply("500 Oops", &[], b""))),
        token("a part of one", &["answers 206"], BEARER, |_| send(reply("206 Part", &[], br#"{"token":"abc"}"#))),
        token("redirected for ever", &["too many redirects"], BEARER, redirect),
    ]
}

/// Tokens that are never enough, or that would reach others.
pub(crate) fn credentials() -> Vec<Script> {
    let granted = |ask: &Ask| ask.path.starts_with("/token").then(|| send(reply("200 OK", &[], br#"{"token":"abc"}"#)));
    let challenge = |ask: &Ask| {
        let value = BEARER.replace("{}", &format!("127.0.0.1:{}", ask.port));
        send(reply("401 Who", &[("WWW-Authenticate", &value), ("Set-Cookie", "session=secret")], b""))
    };
    let for_ever = Arc::new(move |ask: &Ask| granted(ask).or_else(|| Some(challenge(ask))));
    let away = Arc::new(move |ask: &Ask| {
        granted(ask).or_else(|| match ask.headers.contains_key("authorization") {
            true if ask.part == Part::Layer => Some(to(&format!("http://127.0.0.2:{}{}", ask.elsewhere, ask.path))),
            true => None,
            false => Some(challenge(ask)),
        })
    });
    let port = Arc::new(move |ask: &Ask| {
        granted(ask).or_else(|| match ask.headers.contains_key("authorization") {
            true => Some(to(&format!("http://127.0.0.2:{}{}", ask.elsewhere, ask.path))),
            false => Some(challenge(ask)),
        })
    });
    vec![
        refused("token: never enough", &["anonymous users (401)"], for_ever),
        taken("token: a redirect of the layer to another host", away),
        taken("token: a redirect of everything to another host", port),
    ]
}
