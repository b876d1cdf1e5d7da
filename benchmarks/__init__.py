"""Measurements that README and docs quote; each module runs by itself: ``python -m benchmarks.bench_bus``."""
