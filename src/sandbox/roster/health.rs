//! A sandbox's last health checks. What they say as a whole is in its standing, which is written where a disk is full, too.

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
        stored::write(&self.path.join(HEALTH), log)
    }
}

fn read(folder: &Path) -> Result<HealthLog, RosterError> {
    Ok(stored::read(&folder.join(HEALTH))?.unwrap_or_default())
}
