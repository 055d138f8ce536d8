//! Chainable setters, named `with_` and the field.

/// Generates setters from lines `/// Documentation. with_field(field: type => value);`, where the value is the argument itself
/// if it is left out.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($field:ident: $type:ty $(=> $value:expr)?);)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $field: $type) -> Self {
            self.$field = setters!(@value $field $(, $value)?);
            self
        }
    )*};
    (@value $field:ident) => { $field };
    (@value $field:ident, $value:expr) => { $value };
}

pub(crate) use setters;
