//! Decides; the binary carries.
