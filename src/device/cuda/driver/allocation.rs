//! Device memory that is freed on drop.

use super::interface::Driver;
use crate::error::Result;
use std::sync::Arc;

/// An owned device allocation, freed on drop.
pub(crate) struct DeviceAllocation {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl DeviceAllocation {
    /// Allocates so many bytes, for what is written before it is read: sanitizers and the tests' driver report the rest.
    ///
    /// # Errors
    /// Those of the driver.
    pub(crate) fn uninitialized(driver: Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let address = driver.allocate(bytes)?;
        Ok(Self { driver, address, bytes })
    }

    /// Allocates so many bytes, all zero.
    ///
    /// # Errors
    /// Those of the driver.
    pub(crate) fn zeroed(driver: Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let address = driver.allocate_zeroed(bytes)?;
        Ok(Self { driver, address, bytes })
    }

    /// The driver that holds the memory.
    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceAllocation {
    fn drop(&mut self) {
        self.driver.free(self.address);
    }
}
