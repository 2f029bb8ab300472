"""Samples by reference: sources, splits, decoded pictures, augmentation."""
