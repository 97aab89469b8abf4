"""The chains of each sampler as plain functions over tiles; their source becomes part of each generated module."""
