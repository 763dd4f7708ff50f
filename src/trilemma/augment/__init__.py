"""What is done to real and generated images alike before a discriminator sees them."""
