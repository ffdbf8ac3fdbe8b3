"""The steps of the pipeline: plain functions, one file a step, named as in the graph."""
