"""Rows -> packed rows: specs and sources, chat rendering, documents, packing, Ray Data.

    mixture ▶ sources (files, adapters) ▶ reading ▶ tokenizing (chat, documents) ▶ packing ▶ packed

Each step is a pure function over tables; `pipeline` strings them together with Ray Data.
"""
