"""How good a reward is and what a policy gained: accuracy, biases, win rates, pools, signs of gaming."""
