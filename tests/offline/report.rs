//! The page of a comparison: its structure, that it needs nobody else, and that words of others stay words.

use std::path::PathBuf;

use duplex::compare::{Record, against, report};

use crate::layers::root;

pub(crate) fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

fn record() -> Record {
    serde_json::from_slice(&std::fs::read(golden("compare.v2.json")).unwrap()).unwrap()
}

/// A tag of the page: its name, whether it closes, and what else it says.
struct Tag<'a> {
    name: &'a str,
    closes: bool,
    rest: &'a str,
}

fn tags(html: &str) -> Vec<Tag<'_>> {
    let mut found = Vec::new();
    let mut left = html;
    while let Some((_, from)) = left.split_once('<') {
        let (tag, after) = from.split_once('>').expect("a tag that does not end");
        left = after;
        if tag.starts_with('!') {
            continue;
        }
        let closes = tag.starts_with('/');
        let tag = tag.trim_start_matches('/');
        let name = &tag[..tag.find([' ', '/', '\n']).unwrap_or(tag.len())];
        if name == "style" && !closes {
            left = left.split_once("</style>").unwrap().1;
            continue;
        }
        found.push(Tag { name, closes, rest: &tag[name.len()..] });
    }
    found
}

const VOID: [&str; 3] = ["meta", "link", "br"];

/// What stands in what, by names and ids, without words; rows and cells are left out, and what is drawn.
fn outline(html: &str) -> String {
    const SHOWN: [&str; 12] =
        ["head", "header", "main", "section", "h1", "h2", "h3", "figure", "svg", "table", "details", "pre"];
    let mut lines = String::new();
    let mut open: Vec<&str> = Vec::new();
    for tag in tags(html) {
        let drawn = open.contains(&"svg");
        if tag.closes {
            assert_eq!(open.pop(), Some(tag.name), "a tag that closes another");
        } else {
            if SHOWN.contains(&tag.name) && !drawn {
                let depth = open.iter().filter(|name| SHOWN.contains(name)).count();
                let id = tag.rest.split_once("id=\"").map_or("", |(_, id)| id.split_once('"').unwrap().0);
                let id = if id.is_empty() { String::new() } else { format!("#{id}") };
                lines.push_str(&format!("{}{}{id}\n", "  ".repeat(depth), tag.name));
            }
            if !VOID.contains(&tag.name) && !tag.rest.ends_with('/') {
                open.push(tag.name);
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    lines
}

#[test]
fn the_page_has_its_parts_in_their_order() {
    let found = outline(&report(&record(), None).unwrap());
    let path = golden("report.outline");
    if std::env::var_os("DUPLEX_BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(path).unwrap(), "DUPLEX_BLESS=1 writes the new outline");
}

#[test]
fn what_it_is_and_what_it_says_come_first() {
    let html = report(&record(), None).unwrap();
    let at = |words: &str| html.find(words).unwrap_or_else(|| panic!("no {words}"));
    let body = at("<body>");
    assert!(body < at("Measured in the lab") && at("Measured in the lab") < at("id=\"answer\""));
    assert!(at("these samples cannot tell whether microvm") < at("<h2>"), "the verdict stands above all sections");
    let mut here = record();
    here.host.lab = false;
    assert!(!report(&here, None).unwrap().contains("Measured in the lab"));
}

#[test]
fn an_earlier_result_is_answered_before_all_else() {
    let record = record();
    let html = report(&record, Some(&against(&record, &record, 0.1))).unwrap();
    let answer = html.split_once("id=\"answer\"").unwrap().1.split_once("</section>").unwrap().0;
    assert!(answer.find("earlier result").unwrap() < answer.find("In this lab").unwrap(), "{answer}");
    assert!(outline(&html).contains("section#baseline"));
}

#[test]
fn it_names_nothing_to_fetch_and_runs_nothing() {
    let html = report(&record(), None).unwrap();
    let names = |tag: &Tag<'_>, name: &str| tag.rest.contains(&format!(" {name}=\""));
    for tag in tags(&html) {
        assert!(
            !["script", "img", "iframe", "object", "embed", "audio", "video", "image", "use", "a"].contains(&tag.name)
        );
        let event = tag.rest.split(' ').any(|word| word.starts_with("on") && word.contains('='));
        let own = tag.name == "link" && tag.rest.contains("href=\"data:,\"");
        assert!(own || !(names(&tag, "src") || names(&tag, "href") || event), "{}{}", tag.name, tag.rest);
    }
    let style = html.split_once("<style>").unwrap().1.split_once("</style>").unwrap().0;
    assert!(!style.contains("url(") && !style.contains("@import"));
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn words_of_others_stay_words() {
    let evil = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&";
    let mut record = record();
    record.image.reference = evil.to_owned();
    record.command = vec![evil.to_owned()];
    record.host.cpu_model = Some(evil.to_owned());
    record.unequal.push(evil.to_owned());
    record.arms[0].controls[0].found = evil.to_owned();
    let parts = std::collections::BTreeMap::from([(evil.to_owned(), 1_u64)]);
    record.arms[0].disk_bytes = parts;
    for arm in &mut record.arms {
        arm.arm.name = format!("{evil}{}", arm.arm.isolation);
    }
    record.comparisons.iter_mut().for_each(|c| c.arm = format!("{evil}microvm"));
    let html = report(&record, None).unwrap();
    let _ = outline(&html);
    assert!(!tags(&html).iter().any(|tag| ["script", "img"].contains(&tag.name)), "{html}");
}

#[test]
fn a_record_with_next_to_nothing_in_it_still_makes_a_page() {
    let mut record = record();
    record.comparisons.clear();
    for arm in &mut record.arms {
        arm.runs.clear();
        arm.memory_runs.clear();
        arm.disk_bytes.clear();
        arm.controls.clear();
        arm.summarize();
    }
    let _ = outline(&report(&record, None).unwrap());
    record.arms.truncate(1);
    let _ = outline(&report(&record, None).unwrap());
    record.arms.clear();
    let _ = outline(&report(&record, None).unwrap());
}

#[test]
fn every_sample_is_in_it() {
    let record = record();
    let html = report(&record, None).unwrap();
    for run in record.arms.iter().flat_map(|arm| &arm.runs) {
        assert!(html.contains(&format!("<td>{:.3}</td>", run.total_ms)), "{}", run.total_ms);
    }
    let json = html.split_once("<pre id=\"json\">").unwrap().1.split_once("</pre>").unwrap().0;
    let json = json.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
}
