use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Reference {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn names_are_completed_as_docker_completes_them() {
    let digest = format!("sha256:{}", "0a".repeat(32));
    for (text, canonical, shown) in [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/library/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("grafana/grafana:v1", "docker.io/grafana/grafana:v1", "grafana/grafana:v1"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("127.0.0.1:5000/a/b/c:t_1.x-Y", "127.0.0.1:5000/a/b/c:t_1.x-Y", "127.0.0.1:5000/a/b/c:t_1.x-Y"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("Registry.Example.org/x", "registry.example.org/x:latest", "registry.example.org/x:latest"),
        ("a__b/c--d.e:1", "docker.io/a__b/c--d.e:1", "a__b/c--d.e:1"),
    ] {
        let reference = parse(text);
        assert_eq!((reference.canonical().as_str(), reference.to_string().as_str()), (canonical, shown), "{text}");
    }
    let pinned = parse(&format!("debian@{digest}"));
    assert_eq!((pinned.tag(), pinned.digest().unwrap().to_string()), (None, digest.clone()));
    let both = parse(&format!("debian:12@{digest}"));
    assert_eq!((both.tag(), both.digest().unwrap().to_string()), (Some("12"), digest));
}

#[test]
fn ids_are_told_from_names() {
    let hex = "0a".repeat(32);
    assert_eq!(parse(&hex).id().unwrap().hex(), hex);
    assert_eq!(parse(&format!("sha256:{hex}")).id().unwrap().hex(), hex);
    assert_eq!(parse("0a0a0a0a0a0a").short_id(), Some("0a0a0a0a0a0a"));
    for name in ["0a0a0a0a0a0a:1", "x/0a0a0a0a0a0a", "0a0a0", "0a0a0a0a0a0g", "localhost/0a0a0a0a0a0a"] {
        assert_eq!(parse(name).short_id(), None, "{name}");
    }
}

#[test]
fn what_is_no_reference_is_refused() {
    let long_tag = format!("x:{}", "t".repeat(129));
    let long_name = format!("{}x", "x/".repeat(127));
    for bad in [
        "",
        ":",
        "/",
        "@",
        "x:",
        "x@",
        "x@sha256:00",
        "x@md5:00",
        "X",
        "x/Y",
        "A/a",
        "x//y",
        "/x",
        "x/",
        "-x",
        "x-",
        "x..y",
        "x___y",
        "._",
        "x:-t",
        "x:.t",
        "x:t@",
        "x y",
        "x\n",
        "x:t/y",
        "../x",
        "x/../y",
        "http://x/y",
        "x:t:u",
        "host.:5/x",
        "h.o:0/x",
        "h.o:65536/x",
        "h.o:/x",
        "h.o:5x/x",
        "-h.o/x",
        "[::1/x",
        "[]/x",
        "[g::]/x",
        "[::1]x/y",
        "1.2.3/x",
        "1.2.3.4.5/x",
        "256.1.1.1/x",
        "ünï",
        "x:ü",
        "a.b/",
        "localhost:5000/",
        "x\0y",
        &long_tag,
        &long_name,
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken");
    }
}

#[test]
fn errors_name_what_is_wrong() {
    for (text, words) in
        [("Debian", "lower case"), ("x:t!", "'t!'"), ("h.o:99999/x", "'h.o:99999'"), ("a..b", "'library/a..b'")]
    {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,300}|[a-zA-Z0-9:/@._\\[\\]-]{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(&parse(&reference.canonical()), &reference);
            prop_assert_eq!(&parse(&reference.to_string()), &reference);
        }
    }

    #[test]
    fn every_spec_conforming_name_is_taken(
        registry in proptest::option::of("(localhost|[a-z][a-z0-9]{0,9}\\.[a-z]{2,5})(:[1-9][0-9]{0,3})?"),
        repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}((\\.|_|__|-)[a-z0-9]{1,8}){0,2}){0,3}",
        tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"),
        digest in proptest::option::of("[0-9a-f]{64}"),
    ) {
        let first = repository.split('/').next().unwrap();
        prop_assume!(registry.is_some() || !repository.contains('/') || (!first.contains('.') && first != "localhost"));
        let mut text = String::new();
        if let Some(registry) = &registry { text.push_str(registry); text.push('/'); }
        text.push_str(&repository);
        if let Some(tag) = &tag { text.push(':'); text.push_str(tag); }
        if let Some(digest) = &digest { text.push_str("@sha256:"); text.push_str(digest); }
        prop_assume!(text.parse::<Digest>().is_err() && !is_bare_id(&text));
        let reference = parse(&text);
        prop_assert!(reference.repository().unwrap().ends_with(&repository));
        prop_assert_eq!(reference.digest().map(|d| d.hex().to_owned()), digest);
        prop_assert_eq!(parse(&reference.to_string()), reference.clone());
        prop_assert_eq!(parse(&reference.canonical()), reference);
    }
}
