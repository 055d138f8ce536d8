//! Access to the one stream of a device.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Serializes access to the device stream.
pub(crate) type StreamLock = Arc<Mutex<()>>;

/// Waits for access. A panic of another executable's run leaves nothing behind that the lock protects.
pub(crate) fn lock_stream(lock: &StreamLock) -> MutexGuard<'_, ()> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
