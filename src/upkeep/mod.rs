//! Keeping a repository whole: finding out what is damaged.

pub mod check;
