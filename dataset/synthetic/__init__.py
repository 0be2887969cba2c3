"""Drawn scenes: pictures of coloured shapes and signs with digits, and everything that can be said and asked about them.

scene: what stands where. drawing: its pixels. facts: what is true of it. phrasing, reasoning, texts: how English and
Chinese say so. annotators: how ten people would answer. files: the raw formats of real data sets.
"""
