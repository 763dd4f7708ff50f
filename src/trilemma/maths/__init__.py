"""Pure tensor functions: schedules, Gaussian steps, adversarial losses and seeded noise. No modules, no files.

Symbols are the papers': ``x_0`` data, ``x_t`` noised data, ``beta_t`` the variance added by one step,
``alpha_t = 1 - beta_t``, ``alpha_bar_t`` the running product of ``alpha``.
"""
