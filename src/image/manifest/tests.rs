use proptest::prelude::*;

use super::*;

const D: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn manifest(layer_type: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",
            "config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{D}","size":3,"urls":["http://elsewhere/"]}}]}}"#
    )
}

fn index(entries: &[(&str, &str)]) -> Index {
    let entry = |(platform, digit): &(&str, &str)| {
        let digest = digit.repeat(64);
        format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{digest}","size":1{platform}}}"#)
    };
    let list = entries.iter().map(entry).collect::<Vec<_>>().join(",");
    match Document::parse(format!(r#"{{"schemaVersion":2,"manifests":[{list}]}}"#).as_bytes(), None).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(_) => panic!("an index"),
    }
}

#[test]
fn layers_of_all_kinds_are_known() {
    for (kind, compression) in [
        ("application/vnd.oci.image.layer.v1.tar", Compression::None),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ] {
        let Document::Manifest(found) = Document::parse(manifest(kind).as_bytes(), Some(OCI_MANIFEST)).unwrap() else {
            panic!("a manifest")
        };
        assert_eq!(found.layers[0].1, compression, "{kind}");
    }
}

#[test]
fn documents_that_are_no_image_are_refused() {
    let foreign = manifest("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    let both = manifest("application/vnd.oci.image.layer.v1.tar").replacen('{', r#"{"manifests":[],"#, 1);
    let chart = manifest("application/vnd.oci.image.layer.v1.tar")
        .replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
    let relabelled = manifest("application/vnd.oci.image.layer.v1.tar").replace(OCI_MANIFEST, OCI_INDEX);
    let layer = format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{D}","size":1}}"#);
    let many = vec![layer; 129].join(",");
    let many = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},"layers":[{many}]}}"#
    );
    let big = many.replace("\"size\":2", "\"size\":8388609");
    for (json, words) in [
        ("", "specification"),
        ("null", "specification"),
        (r#"{"schemaVersion":1,"name":"x"}"#, "version 1"),
        (r#"{"schemaVersion":2}"#, "Media type"),
        (&foreign, "foreign layer"),
        (&both, "neither"),
        (&chart, "not a container image"),
        (&relabelled, "Media type"),
        (&manifest("text/plain"), "'text/plain'"),
        (&manifest("x").replace(D, "sha256:../../x"), "specification"),
        (&manifest("x").replace("\"size\":2", "\"size\":-2"), "specification"),
        (&many, "129 layers"),
        (&big, "8388609"),
    ] {
        let error = Document::parse(json.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains(words), "{json}: {error}");
    }
    let good = manifest("application/vnd.oci.image.layer.v1.tar");
    assert!(Document::parse(good.as_bytes(), Some(DOCKER_LIST)).is_err(), "announced as a list");
}

#[test]
fn the_entry_for_this_platform_is_chosen() {
    let amd = r#","platform":{"os":"linux","architecture":"amd64"}"#;
    let v3 = r#","platform":{"os":"linux","architecture":"amd64","variant":"v3"}"#;
    let arm = r#","platform":{"os":"linux","architecture":"arm64","variant":"v8"}"#;
    let attestation = r#","platform":{"os":"unknown","architecture":"unknown"}"#;
    let chosen = |entries: &[(&str, &str)]| {
        index(entries).for_this_platform().map(|d| d.digest.hex()[..1].to_owned()).map_err(|e| e.to_string())
    };
    assert_eq!(chosen(&[(arm, "1"), (amd, "2"), (attestation, "3")]).unwrap(), "2");
    assert_eq!(chosen(&[(v3, "1"), (amd, "2")]).unwrap(), "2");
    assert_eq!(chosen(&[(v3, "1"), (arm, "2")]).unwrap(), "1");
    assert_eq!(chosen(&[("", "1"), (arm, "2")]).unwrap(), "1");
    assert!(chosen(&[("", "1"), ("", "2")]).is_err());
    assert!(chosen(&[(arm, "1"), (attestation, "2")]).unwrap_err().ends_with("it has: linux/arm64/v8"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let _ = Document::parse(&bytes, None);
        let good = manifest("application/vnd.oci.image.layer.v1.tar");
        let _ = Document::parse(&good.as_bytes()[..cut.min(good.len())], None);
    }
}
