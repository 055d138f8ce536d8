//! The C interface of Braid. `include/braid.h` describes every function, type and constant; here each has the header's name and is
//! a few lines around the library's own. Tests compare both (tests/c).

#![allow(non_camel_case_types)] // The names are C's.

#[macro_use]
pub mod edge;
#[macro_use]
pub mod params;
pub mod attribution;
pub mod batch;
pub mod callbacks;
pub mod cancel;
pub mod encoded;
pub mod engine;
pub mod image;
pub mod live;
pub mod names;
pub mod output;
pub mod pipeline;
pub mod pointers;
pub mod request;
pub mod session;
pub mod status;
pub mod stream;
pub mod structs;
pub mod ticket;
pub mod warnings;
