"""The published benchmarks by name: their image lists, and their images out of the standard folders."""

from openworld.data.benchmarks.lists import BENCHMARKS, Benchmark, ImageList, md5_of_ids, read_list

__all__ = ["BENCHMARKS", "Benchmark", "ImageList", "md5_of_ids", "read_list"]
