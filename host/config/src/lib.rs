//! The recipe: one TOML file with every setting, checked key by key, with flags over it.
