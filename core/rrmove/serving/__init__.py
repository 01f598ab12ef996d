"""The data server: directories of a node, by name, over HTTP; uploads end as every file of rrmove does."""
