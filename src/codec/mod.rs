//! Bytes to smaller bytes and back (`frame`), and to sealed bytes and back (`seal`).

pub mod frame;
pub mod seal;
