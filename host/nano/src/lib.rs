//! The embedded defaults: the nano model, its data sets and the official plugins, so that the main job runs from one file.
