//! Values passed between executables, in the host's memory or left on the device.

use crate::error::{Error, Result};
use crate::graph::InputType;
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

    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceTensor({} values)", self.len)
    }
}

/// The values of a tensor in the host's memory, row-major; borrowed or not.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData<'a> {
    /// IEEE binary32.
    F32(Cow<'a, [f32]>),
    /// Integers of 32 bits.
    I32(Cow<'a, [i32]>),
}

impl TensorData<'_> {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I32(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the values.
    pub fn element_type(&self) -> InputType {
        match self {
            Self::F32(_) => InputType::F32,
            Self::I32(_) => InputType::I32,
        }
    }

    /// The same, not copied.
    pub fn view(&self) -> TensorData<'_> {
        self.slice(0..self.len())
    }

    /// A range of them, not copied.
    ///
    /// # Panics
    /// For values that are not there.
    pub fn slice(&self, range: Range<usize>) -> TensorData<'_> {
        match self {
            Self::F32(values) => TensorData::from(&values[range]),
            Self::I32(values) => TensorData::from(&values[range]),
        }
    }

    /// The bytes of the values, in the host's order.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values),
            Self::I32(values) => bytemuck::cast_slice(values),
        }
    }
}

/// Takes slices, vectors and references to them as values of one type.
macro_rules! tensor_data_from {
    ($element:ty, $variant:ident) => {
        impl<'a> From<&'a [$element]> for TensorData<'a> {
            fn from(values: &'a [$element]) -> Self {
                Self::$variant(Cow::Borrowed(values))
            }
        }

        impl<'a, const N: usize> From<&'a [$element; N]> for TensorData<'a> {
            fn from(values: &'a [$element; N]) -> Self {
                Self::$variant(Cow::Borrowed(values))
            }
        }

        impl<'a> From<&'a Vec<$element>> for TensorData<'a> {
            fn from(values: &'a Vec<$element>) -> Self {
                Self::$variant(Cow::Borrowed(values))
            }
        }

        impl From<Vec<$element>> for TensorData<'_> {
            fn from(values: Vec<$element>) -> Self {
                Self::$variant(Cow::Owned(values))
            }
        }
    };
}

tensor_data_from!(f32, F32);
tensor_data_from!(i32, I32);

/// Values that an executable takes or gives.
#[derive(Debug, Clone)]
pub enum TensorRef<'a> {
    /// In the host's memory.
    Host(TensorData<'a>),
    /// In a device's own, f32.
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

    /// The type of the values.
    pub fn element_type(&self) -> InputType {
        match self {
            Self::Host(values) => values.element_type(),
            Self::Device(_) => InputType::F32,
        }
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
            Self::Host(values) => TensorRef::Host(values.slice(start..end)),
            Self::Device(all) => {
                TensorRef::Device(DeviceTensor { start: all.start + start, len: end - start, ..all.clone() })
            }
        })
    }

    /// The values; downloaded where they are not the host's.
    ///
    /// # Errors
    /// [`crate::Error::Fault`] where the device has failed.
    pub fn to_host(&self) -> Result<TensorData<'_>> {
        match self {
            Self::Host(values) => Ok(values.view()),
            Self::Device(values) => {
                let mut to = vec![0.0; values.len];
                values.memory.read(values.start, &mut to)?;
                Ok(to.into())
            }
        }
    }

    /// The values as f32, see [`TensorRef::to_host`].
    ///
    /// # Errors
    /// As [`TensorRef::to_host`]; [`Error::Graph`] for integers.
    pub fn read(&self) -> Result<Cow<'_, [f32]>> {
        match self.to_host()? {
            TensorData::F32(values) => Ok(values),
            TensorData::I32(values) => Err(Error::Graph(format!("{} values of i32 are read as f32", values.len()))),
        }
    }
}

impl<'a, T: Into<TensorData<'a>>> From<T> for TensorRef<'a> {
    fn from(values: T) -> Self {
        Self::Host(values.into())
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

    #[test]
    fn integers_are_no_floats() {
        let counts = TensorRef::from(vec![7, 8, 9]);
        assert_eq!((counts.len(), counts.element_type()), (3, InputType::I32));
        let part = counts.slice(1..3).unwrap();
        assert_eq!(part.to_host().unwrap(), TensorData::from(&[8, 9]));
        assert!(part.read().unwrap_err().to_string().contains("2 values of i32 are read as f32"));
    }
}
