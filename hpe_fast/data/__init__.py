"""Pose stores, augmentation and the DALI loader."""
