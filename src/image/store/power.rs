//! Power cuts for tests: before the nth durable step everything stops, and files written but not synced by then lose their contents.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

#[derive(Debug)]
pub(in crate::image) struct Cut(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    left: u32,
    unsynced: BTreeSet<PathBuf>,
    happened: bool,
}

impl Cut {
    pub(in crate::image) fn after(steps: u32) -> Self {
        Self(Mutex::new(Inside { left: steps, unsynced: BTreeSet::new(), happened: false }))
    }

    pub(super) fn step(&self) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        if inside.left == 0 {
            inside.happened = true;
            for path in std::mem::take(&mut inside.unsynced) {
                if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
                    file.set_len(0).unwrap();
                }
            }
            return Err(io::Error::other("power cut"));
        }
        inside.left -= 1;
        Ok(())
    }

    pub(super) fn note(&self, path: &Path, synced: bool) {
        let mut inside = self.0.lock().unwrap();
        if synced {
            inside.unsynced.remove(path);
        } else {
            inside.unsynced.insert(path.to_owned());
        }
    }

    pub(in crate::image) fn happened(&self) -> bool {
        self.0.lock().unwrap().happened
    }
}
