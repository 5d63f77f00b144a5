//! What happens here, told to browsers and programs as it happens.
