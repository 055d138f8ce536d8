//! Build and date of a measurement.

use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// Build and date.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    pub version: &'static str,
    pub build: &'static str,
    /// The commit that it was built from, `unknown` outside a checkout; changes that were not committed do not show.
    pub commit: &'static str,
    /// UTC, e.g. `2026-11-24T15:04:05Z`.
    pub date: String,
}

impl Host {
    /// The build of this executable, and the present time.
    pub fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            commit: env!("BRAID_COMMIT"),
            date: utc(seconds),
        }
    }

    /// The titles of its cells.
    pub const TITLES: [&str; 3] = ["build", "commit", "date"];

    /// The cells of a row after the machine's.
    pub fn cells(&self) -> [String; 3] {
        [format!("{} {}", self.version, self.build), self.commit.to_owned(), self.date.clone()]
    }
}

/// Seconds since 1970 as a date and time of the Gregorian calendar, counted in years that begin in March, so that the leap
/// day is the last.
fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(super::utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(super::utc(1_000_000_000), "2001-09-09T01:46:40Z");
    }
}
