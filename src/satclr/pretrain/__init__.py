"""Contrastive pretraining: a tile store → an encoder. Start reading at `train`, the loop.

`views` renders what each step sees, `loss` has the objectives, `encoder` the networks and their files.
"""
