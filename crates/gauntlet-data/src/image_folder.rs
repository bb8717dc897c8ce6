//! PNG and JPEG files in one folder a class.
