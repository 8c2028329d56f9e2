//! One of the fuzz targets; what it asserts is in the library.

#![cfg_attr(fuzzing, no_main)]

pinfold_fuzz::target!(words);
