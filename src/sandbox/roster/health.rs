//! A sandbox's last health checks. What they say as a whole is in its standing, which is written where a disk is full, too.

use std::fs;
use std::path::Path;

use super::{Entry, RosterError, Seen, stored};
use crate::spec::HealthLog;

const HEALTH: &str = "health.json";

impl Seen {
    /// Its last health checks.
    ///
    /// # Errors
    /// If they cannot be understood.
    pub fn health_log(&self) -> Result<HealthLog, RosterError> {
        read(&self.path)
    }
}

impl Entry {
    /// Its last health checks.
    ///
    /// # Errors
    /// If they cannot be understood.
    pub fn health_log(&self) -> Result<HealthLog, RosterError> {
        read(&self.path)
    }

    /// Writes them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save_health_log(&self, log: &HealthLog) -> Result<(), RosterError> {
        let file = self.path.join(HEALTH);
        stored::write(&file, log).inspect_err(|_| {
            // On a full disk its bytes may be the last ones that a standing needs.
            let _ = fs::remove_file(file.with_extension("part"));
        })
    }
}

fn read(folder: &Path) -> Result<HealthLog, RosterError> {
    Ok(stored::read(&folder.join(HEALTH))?.unwrap_or_default())
}
