//! The names that a torch pickle may mention: the allow-list.

use crate::tensor::DType;

/// The reader's treatment of an element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementClass {
    Float(DType),
    Integer,
    Unsupported,
}

/// An element type as torch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element {
    pub name: &'static str,
    pub size: usize,
    pub class: ElementClass,
}

/// The storage classes and, for the types that torch stores untyped, the types.
const ELEMENTS: [(&str, Element); 22] = {
    const fn element(name: &'static str, size: usize, class: ElementClass) -> Element {
        Element { name, size, class }
    }
    use ElementClass::{Float, Integer, Unsupported};
    [
        ("FloatStorage", element("float32", 4, Float(DType::F32))),
        ("HalfStorage", element("float16", 2, Float(DType::F16))),
        ("BFloat16Storage", element("bfloat16", 2, Float(DType::BF16))),
        ("DoubleStorage", element("float64", 8, Unsupported)),
        ("ComplexFloatStorage", element("complex64", 8, Unsupported)),
        ("ComplexDoubleStorage", element("complex128", 16, Unsupported)),
        ("LongStorage", element("int64", 8, Integer)),
        ("IntStorage", element("int32", 4, Integer)),
        ("ShortStorage", element("int16", 2, Integer)),
        ("CharStorage", element("int8", 1, Integer)),
        ("ByteStorage", element("uint8", 1, Integer)),
        ("BoolStorage", element("bool", 1, Integer)),
        ("uint16", element("uint16", 2, Integer)),
        ("uint32", element("uint32", 4, Integer)),
        ("uint64", element("uint64", 8, Integer)),
        ("float8_e4m3fn", element("float8_e4m3fn", 1, Unsupported)),
        ("float8_e4m3fnuz", element("float8_e4m3fnuz", 1, Unsupported)),
        ("float8_e5m2", element("float8_e5m2", 1, Unsupported)),
        ("float8_e5m2fnuz", element("float8_e5m2fnuz", 1, Unsupported)),
        ("float8_e8m0fnu", element("float8_e8m0fnu", 1, Unsupported)),
        ("float4_e2m1fn_x2", element("float4_e2m1fn_x2", 1, Unsupported)),
        ("UntypedStorage", element("byte", 1, Unsupported)),
    ]
};

/// The types that no storage carries, as values of their own.
const DTYPES: [&str; 12] = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "complex64",
    "complex128",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
];

/// The names that a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    Tensor2,
    Tensor3,
    Parameter,
    Element(Element),
    /// A harmless value beside the tensors, which is not looked at: a shape, a type, a device, a count.
    Ignored,
}

impl Global {
    /// `None` for a name that weights do not need.
    pub fn find(module: &str, name: &str) -> Option<Self> {
        let element = || ELEMENTS.iter().find(|(n, _)| *n == name).map(|(_, e)| Self::Element(*e));
        match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::Tensor2),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::Tensor3),
            ("torch._utils", "_rebuild_parameter") => Some(Self::Parameter),
            ("torch.storage", "UntypedStorage") => element(),
            ("torch", "Size" | "device") | ("collections", "Counter") | ("_codecs", "encode") => Some(Self::Ignored),
            ("torch.serialization", "_get_layout") => Some(Self::Ignored),
            ("builtins" | "__builtin__", "bytearray" | "set" | "complex") => Some(Self::Ignored),
            ("torch", _) if DTYPES.contains(&name) => Some(Self::Ignored),
            ("torch", _) if name != "UntypedStorage" => element(),
            _ => None,
        }
    }
}
