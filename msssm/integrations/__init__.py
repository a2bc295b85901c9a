"""Modules that, when imported, register msssm's models in other libraries."""
