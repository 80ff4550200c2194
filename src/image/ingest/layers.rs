//! The layers of one image, two at a time.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{IngestError, PlannedLayer, Source, Verified, error, write_tree};
use crate::image::layer::convert;
use crate::image::progress::{Event, Progress};
use crate::image::store::{LayerRecord, StoreError, Writer};

/// Layers in work at once: one waits for the network while the other is converted.
const WORKERS: usize = 2;
/// How long we wait for another process that makes the same layer before we make it too.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long such a wait may be before it is told.
const QUIET: Duration = Duration::from_millis(100);
/// Shortest data blob, in bytes: one block.
const BLOCK: u64 = 4096;
/// Bytes between two reports of progress.
const REPORT: u64 = 256 << 10;

/// Makes sure that all layers are in the store. The first failure stops the others and is returned.
pub(super) fn bring(
    writer: &Writer<'_>,
    source: &dyn Source,
    layers: &[PlannedLayer],
    progress: &dyn Progress,
) -> Result<(), IngestError> {
    let mut seen = BTreeSet::new();
    let todo: Vec<(usize, &PlannedLayer)> =
        layers.iter().enumerate().filter(|(_, l)| seen.insert(l.diff_id.clone())).collect();
    let work = Work { writer, source, progress, stop: AtomicBool::new(false) };
    let next = AtomicUsize::new(0);
    let first_failure: Mutex<Option<IngestError>> = Mutex::new(None);
    let worker = || {
        while let Some((number, layer)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(failure) = work.bring_one(*number, layer) {
                let mut first = first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                // A worker that was stopped has nothing of its own to say.
                if first.is_none() && !matches!(failure, IngestError::Stopped) {
                    *first = Some(failure);
                }
                work.stop.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..WORKERS.min(todo.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    let failure = first_failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

struct Work<'a> {
    writer: &'a Writer<'a>,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    stop: AtomicBool,
}

impl Work<'_> {
    fn bring_one(&self, number: usize, layer: &PlannedLayer) -> Result<(), IngestError> {
        let diff_id = &layer.diff_id;
        let present = || -> Result<bool, IngestError> {
            let present = self.writer.store().whole_layer(diff_id)?.is_some();
            if present {
                self.progress.note(Event::Present { layer: number, diff_id });
            }
            Ok(present)
        };
        if present()? {
            return Ok(());
        }
        let mut lock = self.writer.layer_lock(diff_id, QUIET)?;
        if lock.is_none() {
            self.progress.note(Event::Waiting { layer: number, diff_id });
            lock = self.writer.layer_lock(diff_id, PATIENCE)?;
        }
        // Whoever had the lock may have made the layer.
        if present()? {
            return Ok(());
        }
        self.make(number, layer)?;
        drop(lock);
        self.progress.note(Event::Stored { layer: number, diff_id });
        Ok(())
    }

    fn make(&self, number: usize, layer: &PlannedLayer) -> Result<(), IngestError> {
        let what = format!("layer {}", layer.digest);
        self.progress.note(Event::Begun { layer: number, diff_id: &layer.diff_id, size: layer.size });
        let mut reported = 0;
        let report = |bytes: u64| {
            if bytes >= u64::saturating_add(reported, REPORT) || bytes == layer.size {
                reported = bytes;
                self.progress.note(Event::Read { layer: number, bytes });
            }
        };
        let input = self.source.open(layer)?;
        let mut input =
            Verified::new(input, what.clone(), layer.digest.clone(), layer.size).watched(&self.stop, report);
        input.hurry(self.writer.deadline());
        let mut draft = self.writer.draft_layer(number)?;
        let converted = convert(&mut input, layer.compression, self.writer.store().budget(), &mut draft.data);
        let converted = match converted {
            Ok(converted) => converted,
            Err(source) => {
                let written = draft.data.metadata().map_or(0, |m| m.len());
                let refused = error::layer(source, what, self.writer.scratch(), written);
                // A disk that is full says nothing about the layer.
                let found = if refused.is_disk_full() { Err(refused) } else { input.finish(Some(refused)) };
                return found.and(Err(IngestError::Stopped));
            }
        };
        input.finish(None)?;
        if converted.diff_id != layer.diff_id {
            let (expected, found) = (layer.diff_id.clone(), converted.diff_id);
            return Err(IngestError::WrongDiffId { what, expected, found });
        }
        let tree_len = write_tree(&converted.tree, &draft.tree, &draft.path("tree"))?;
        // A layer without file contents gets one block that nothing refers to (a hole, no bytes on disk): neither a disk's extent nor a loop
        // device can be empty, and each slot of the device table needs its file.
        let data_len = converted.data_len.max(BLOCK);
        draft.data.set_len(data_len).map_err(StoreError::io("set length of", draft.path("data")))?;
        let record = LayerRecord { diff_id: converted.diff_id, data_len, tree_len };
        Ok(self.writer.publish_layer(&draft, &record)?)
    }
}
