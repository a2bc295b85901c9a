"""Images: CIFAR-10 and its like as sequences of pixels, ImageNet and its like as pictures."""
