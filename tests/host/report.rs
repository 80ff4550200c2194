//! The page of a comparison in a real browser: no word on its console, nothing fetched.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use duplex::compare::{Record, report};

use crate::runner::{Case, Need, Verdict};

const NEEDS: &[Need] = &[Need::Outside, Need::Program("chromium")];

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "report::opens_without_a_word_and_without_a_fetch",
        needs: NEEDS,
        run: opens_without_a_word_and_without_a_fetch,
    },
    Case {
        name: "report::shows_in_light_in_dark_and_on_paper",
        needs: NEEDS,
        run: shows_in_light_in_dark_and_on_paper,
    },
];

fn page() -> String {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/compare.v2.json");
    let record: Record = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    report(&record, None).unwrap()
}

/// A headless browser with a profile of its own that asks nobody for updates.
fn browser(dir: &Path) -> Command {
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", dir.join("profile").display())).current_dir(dir);
    command
}

/// What the browser said on the page's console.
fn console(dir: &Path, html: &str) -> Vec<String> {
    std::fs::write(dir.join("page.html"), html).unwrap();
    let out = browser(dir)
        .args(["--enable-logging=stderr", "--window-size=1100,3000", "--screenshot=shot.png"])
        .arg(format!("file://{}/page.html", dir.display()))
        .output()
        .unwrap();
    assert!(dir.join("shot.png").exists(), "no screenshot: {}", String::from_utf8_lossy(&out.stderr));
    let words = String::from_utf8_lossy(&out.stderr).into_owned();
    words.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect()
}

/// A server that counts who comes.
fn counting_server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (port, count)
}

fn opens_without_a_word_and_without_a_fetch() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(console(dir.path(), &page()), [""; 0]);
    // The same eyes see both on a page that has both.
    let (port, count) = counting_server();
    let fetch = format!("<img src=\"http://127.0.0.1:{port}/x.png\"><script>console.error('said')</script></body>");
    let bad = page().replace("</body>", &fetch);
    let words = console(dir.path(), &bad);
    assert!(words.len() >= 2 && words.iter().all(|w| w.contains("Content Security Policy")), "{words:?}");
    assert_eq!(count.load(Ordering::SeqCst), 0, "the page's policy lets nothing out");
    let open = bad
        .replace("default-src 'none'", "default-src *")
        .replace("style-src 'unsafe-inline'; img-src data:", "script-src 'unsafe-inline'");
    let words = console(dir.path(), &open);
    assert!(words.iter().any(|w| w.contains("said")), "{words:?}");
    assert!(count.load(Ordering::SeqCst) > 0, "without the policy it would have been fetched");
    Ok(())
}

fn shows_in_light_in_dark_and_on_paper() -> Verdict {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("page.html"), page()).unwrap();
    let shot = |words: &[&str], file: &str| {
        let out =
            browser(dir.path()).args(words).arg(format!("file://{}/page.html", dir.path().display())).output().unwrap();
        std::fs::read(dir.path().join(file))
            .unwrap_or_else(|e| panic!("{file}: {e}: {}", String::from_utf8_lossy(&out.stderr)))
    };
    let light = shot(&["--window-size=1100,3000", "--screenshot=light.png"], "light.png");
    let dark = shot(
        &["--window-size=1100,3000", "--blink-settings=preferredColorScheme=0", "--screenshot=dark.png"],
        "dark.png",
    );
    assert_ne!(light, dark, "two themes");
    let pdf = shot(&["--print-to-pdf=page.pdf"], "page.pdf");
    assert!(pdf.starts_with(b"%PDF"));
    Ok(())
}
