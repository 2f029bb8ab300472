"""The outside world by reference: networks, weights, data, preprocessing, augmentation.

Start with ``datasets.load_data`` and ``networks.load_network``; ``samples`` holds the form that everything passes on.
"""
