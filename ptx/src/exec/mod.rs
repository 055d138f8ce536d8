//! What the instructions that touch memory or other lanes do.

mod access;
mod collective;
mod copy;
mod mma;
