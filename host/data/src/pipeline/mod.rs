//! The pipeline: decisions of the mixing policy to samples, in order whatever the number of threads.
