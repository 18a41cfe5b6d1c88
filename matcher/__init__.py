"""Regions + captions -> similarity: Stacked Cross Attention.

Letters: B batch, N images, M captions, K regions per image, L words per caption, D feature dimensions, E joint space.
Similarity is (N, M), images as rows, larger is better.
"""
