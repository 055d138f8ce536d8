//! Values between executables: the host's, or those that one executable left on the device for another.

use crate::error::{Error, Result};
use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A device's memory with f32 values in it.
pub trait DeviceBuffer: Any + Send + Sync {
    /// Waits for the device and copies values to the host, from the memory's value `start` on.
    ///
    /// # Errors
    /// [`crate::Error::Fault`] where the device has failed.
    fn read(&self, start: usize, to: &mut [f32]) -> Result<()>;
}

/// f32 values in a device's memory, valid until the executable that left them there runs again. Cheap to clone.
#[derive(Clone)]
pub struct DeviceTensor {
    memory: Arc<dyn DeviceBuffer>,
    start: usize,
    len: usize,
}

impl DeviceTensor {
    /// The `len` values of `memory` from `start` on.
    pub fn new(memory: Arc<dyn DeviceBuffer>, start: usize, len: usize) -> Self {
        Self { memory, start, len }
    }

    /// The memory that holds them.
    pub fn memory(&self) -> &dyn Any {
        self.memory.as_ref()
    }

    /// The number of the first of them in the memory.
    pub fn start(&self) -> usize {
        self.start
    }
}

impl std::fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceTensor({} values)", self.len)
    }
}

/// f32 values that an executable takes or gives.
#[derive(Debug, Clone)]
pub enum TensorRef<'a> {
    /// In the host's memory.
    Host(Cow<'a, [f32]>),
    /// In a device's own.
    Device(DeviceTensor),
}

impl TensorRef<'_> {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device(values) => values.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of them, not copied.
    ///
    /// # Errors
    /// [`Error::Graph`] for values that are not there.
    pub fn slice(&self, range: Range<usize>) -> Result<TensorRef<'_>> {
        let Range { start, end } = range;
        if start > end || end > self.len() {
            return Err(Error::Graph(format!("values {start} to {end} of {}", self.len())));
        }
        Ok(match self {
            Self::Host(values) => TensorRef::from(&values[start..end]),
            Self::Device(all) => {
                TensorRef::Device(DeviceTensor { start: all.start + start, len: end - start, ..all.clone() })
            }
        })
    }

    /// The values; downloaded where they are not the host's.
    ///
    /// # Errors
    /// [`crate::Error::Fault`] where the device has failed.
    pub fn read(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Host(values) => Ok(Cow::Borrowed(values)),
            Self::Device(values) => {
                let mut to = vec![0.0; values.len];
                values.memory.read(values.start, &mut to)?;
                Ok(Cow::Owned(to))
            }
        }
    }
}

impl<'a> From<&'a [f32]> for TensorRef<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::Host(Cow::Borrowed(values))
    }
}

impl From<Vec<f32>> for TensorRef<'_> {
    fn from(values: Vec<f32>) -> Self {
        Self::Host(Cow::Owned(values))
    }
}

impl From<DeviceTensor> for TensorRef<'_> {
    fn from(values: DeviceTensor) -> Self {
        Self::Device(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting;

    impl DeviceBuffer for Counting {
        fn read(&self, start: usize, to: &mut [f32]) -> Result<()> {
            to.iter_mut().enumerate().for_each(|(i, v)| *v = (start + i) as f32);
            Ok(())
        }
    }

    #[test]
    fn parts_of_values() {
        let there = TensorRef::from(DeviceTensor::new(Arc::new(Counting), 10, 6));
        let here = TensorRef::from(vec![10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        for values in [there, here] {
            assert_eq!((values.len(), values.is_empty()), (6, false));
            assert_eq!(*values.read().unwrap(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
            let part = values.slice(2..5).unwrap();
            assert_eq!(*part.read().unwrap(), [12.0, 13.0, 14.0]);
            assert_eq!(*part.slice(1..2).unwrap().read().unwrap(), [13.0]);
            assert!(part.slice(3..3).unwrap().is_empty());
            assert!(part.slice(2..4).is_err() && values.slice(7..7).is_err());
        }
    }
}
