"""Why did the model say so? Explanations from a feature map and a linear head, with numpy and Pillow alone."""
