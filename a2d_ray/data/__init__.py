"""Rows -> packed rows: specs and sources, chat rendering, documents, packing, Ray Data.

    sources: mixture ▶ files, adapters ▶ reading   packing: documents ▶ planning ▶ packed

Each step is a pure function over tables; `pipeline` strings them together with Ray Data.
"""
