"""lowcomm under other people's trainers: transformers and TRL, Accelerate, Lightning, DeepSpeed.

Each module imports its library; importing this package imports none.
"""
