//! The known data sets: files, hashes, licences, citations.
