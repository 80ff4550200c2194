//! `duplex images`.

use std::time::SystemTime;

use serde::Serialize;

use crate::cli::args::{Format, ImagesArgs};
use crate::cli::fail::{Code, Failure, failed};
use crate::cli::output::{columns, print, print_json, size};
use crate::cli::{Context, engine};
use crate::image::ImageSummary;
use crate::spec::Digest;

/// One image in `--format json`.
#[derive(Serialize)]
struct Line<'a> {
    repository: Option<String>,
    tag: Option<&'a str>,
    id: &'a Digest,
    digest: &'a Digest,
    created_unix_s: Option<u64>,
    size_bytes: u64,
    shared_bytes: u64,
}

/// Lists the images of the store.
pub(crate) fn images(context: &Context, args: &ImagesArgs) -> Result<u8, Failure> {
    let store = engine::store(&context.installation).map_err(failed)?;
    let images = store.images().map_err(failed)?;
    match args.format {
        Format::Json => print_json(&images.iter().map(line).collect::<Vec<_>>())?,
        Format::Table if args.quiet => {
            print(&images.iter().map(|i| format!("{}\n", id(i, args.no_trunc))).collect::<String>())?;
        }
        Format::Table => print(&table(&images, args.no_trunc))?,
    }
    Ok(Code::Done as u8)
}

fn line(image: &ImageSummary) -> Line<'_> {
    Line {
        repository: image.reference.as_ref().map(|r| r.familiar_name()),
        tag: image.reference.as_ref().and_then(|r| r.tag()),
        id: &image.id,
        digest: &image.manifest,
        created_unix_s: image.created.and_then(|t| Some(t.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())),
        size_bytes: image.size,
        shared_bytes: image.shared,
    }
}

fn id(image: &ImageSummary, whole: bool) -> String {
    if whole { image.id.to_string() } else { image.id.short().to_owned() }
}

fn table(images: &[ImageSummary], whole: bool) -> String {
    let none = || "<none>".to_owned();
    columns(
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"],
        images.iter().map(|image| {
            let reference = image.reference.as_ref();
            [
                reference.map_or_else(none, |r| r.familiar_name()),
                reference.and_then(|r| r.tag()).map_or_else(none, str::to_owned),
                id(image, whole),
                image
                    .created
                    .filter(|t| *t > SystemTime::UNIX_EPOCH)
                    .map_or_else(|| "N/A".to_owned(), |t| ago(t, SystemTime::now())),
                size(image.size),
            ]
        }),
    )
}

/// How long ago, in Docker's words.
fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).map_or(0, |d| d.as_secs());
    let (count, unit) = match seconds {
        0..60 => return "Less than a minute ago".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ages_are_told_in_dockers_words() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        for (seconds, words) in [
            (5, "Less than a minute ago"),
            (60, "1 minute ago"),
            (7200, "2 hours ago"),
            (200_000, "2 days ago"),
            (1_300_000, "2 weeks ago"),
            (100_000_000, "3 years ago"),
        ] {
            assert_eq!(ago(now - Duration::from_secs(seconds), now), words);
        }
        assert_eq!(ago(now + Duration::from_secs(9), now), "Less than a minute ago", "a clock ahead of ours");
    }
}
