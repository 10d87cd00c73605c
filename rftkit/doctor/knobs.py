"""What each fault means, and the knob to turn: the words beside a rule's numbers.

Fields in the knobs are RunConfig's; TRL's own name stands in brackets where it differs.
"""

# fault -> (why it matters, the knob)
KNOBS = {
    "not_finite": (
        "One NaN in a gradient makes every weight NaN: from that step on nothing is a model.",
        "Go back to the last whole checkpoint; learning_rate down to a third; bf16 or fp32, not "
        "fp16; then look at that step's batch for an empty or endless answer.",
    ),
    "reward_not_a_number": (
        "One NaN among a group's rewards makes all its advantages NaN, and with them the loss.",
        "Find the answer (samples.jsonl) and run `rftkit grade` on it: look for 0/0, an empty "
        "mean or a logarithm of 0 in the grader. A bad answer is 0, a machine's failure null.",
    ),
    "grader_failures": (
        "An answer that the grader could not grade teaches nothing, and a sample of the gradable "
        "is a biased one.",
        "Run `rftkit grade` on one of those answers: endpoint, time limit, a field that the "
        "formula names. A machine's failure must be null, a bad answer 0.",
    ),
    "grader_errors": (
        "An answer on which the grader's own program fails scores 0 like a wrong one: the model "
        "learns what does not crash the grader, or nothing.",
        "Run `rftkit grade` on one answer of these steps (samples.jsonl) and read the traceback; "
        "then let the grader give 0 itself to an answer that it cannot read.",
    ),
    "no_reward_spread": (
        "Advantages compare scores. Where all are equal, every one is zero.",
        "Grade the right answer and a wrong one by hand (`rftkit grade`): they must differ. A "
        "constant usually means an output that cannot be parsed, or a grader that reads the wrong "
        "field.",
    ),
    "dead_groups": (
        "A group whose answers all score alike has advantage zero: it costs sampling and teaches "
        "nothing.",
        "Reward low there: easier rows, partial credit in the grader, answers_per_prompt "
        "[num_generations] up, temperature up, more prompts_per_step. Reward high there: the task "
        "is learnt; harder rows, or stop.",
    ),
    "loss_zero": (
        "A loss of exactly 0 with no gradient (or with a KL that is not 0) never reaches a weight.",
        "Is the adapter trainable (print_trainable_parameters)? Are all completions masked "
        "[mask_truncated_completions], all rewards None, is beta so small that it is rounded away?",
    ),
    "reward_stays_low": (
        "GRPO reinforces what it finds. What is hardly ever found cannot be reinforced.",
        "`rftkit signal` before the next run: is the base ever right in k tries? Then partial "
        "credit, easier rows first, a warm start by SFT, or a stronger base.",
    ),
    "reward_falls": (
        "The policy is moving away from what it is paid for.",
        "learning_rate down, prompts_per_step up (one prompt a step is mostly noise), and read "
        "the newest answers: is a penalty in the reward easier to collect than to avoid?",
    ),
    "reward_up_task_down": (
        "The policy has found something that the grader pays for and the task does not want.",
        "Stop. Take the checkpoint of the best held-out look. Read the answers with the highest "
        "reward, repair the grader against them, then train again (init_adapter).",
    ),
    "past_the_peak": (
        "The last checkpoint is not the best one: after its peak a run learns its own rows.",
        "Keep the best by the held-out metric and stop early: eval_every, patience.",
    ),
    "overfitting": (
        "The model learns its rows by heart: what it gains on them, others lose.",
        "Take the checkpoint of the lowest held-out loss (load_best_model_at_end); fewer epochs, "
        "more rows, lora_rank and learning_rate down.",
    ),
    "format_alone": (
        "The model learnt how an answer must look, not how to find it.",
        "Give the form a small weight, report strict and lenient scores side by side, and check "
        "by `rftkit signal` that the base is ever right.",
    ),
    "truncation": (
        "An answer that is cut usually scores 0: the limit has become part of the task.",
        "max_completion_tokens [max_completion_length] up, to the 95th percentile of the base's "
        "own lengths at least; or pay for shorter answers.",
    ),
    "length_explosion": (
        "Longer without being better: length is being paid for somewhere, or nothing stops it.",
        "Read the longest answers. A loss without length bias (dr_grpo, dapo), a small cost a "
        "token in the grader, beta up.",
    ),
    "length_collapse": (
        "Answers lose their reasoning: the reward comes without it, or a penalty drives it out.",
        "Read the shortest answers. Is there a constant answer that pays? Take out what punishes "
        "length, beta up, go back to a checkpoint before.",
    ),
    "entropy_collapse": (
        "A policy that is sure of every token tries nothing new, and its groups die.",
        "temperature up (towards 1), learning_rate down, beta up; epsilon_high above epsilon lets "
        "rare tokens grow. A collapsed adapter does not recover: start from one before.",
    ),
    "kl_blow_up": (
        "The policy has left the model that it started from; what that one could do may be lost.",
        "learning_rate down, beta up, and back to the last checkpoint with a KL below 0.5.",
    ),
    "gradient_spike": (
        "One batch turned the weights further than many others together.",
        "Look at that step's answers; keep max_grad_norm at 1 or below, learning_rate down, "
        "prompts_per_step up.",
    ),
    "gradient_vanishes": (
        "Groups had a spread, and yet hardly any gradient arrived at the weights.",
        "Is the adapter trainable, and is it the one that is trained? learning_rate up, lora_rank "
        "up; with bf16 weights, keep the adapter in fp32.",
    ),
    "clip_binds": (
        "Many tokens have left the range in which old answers may still teach.",
        "Fewer updates on one batch [num_iterations, steps_per_generation], learning_rate down.",
    ),
    "nothing_held_out": (
        "Reward is measured on the rows that are trained on, by the grader that is optimised: it "
        "cannot tell learning from gaming, nor the best step from the last.",
        "eval_every above 0, on rows whose groups are not trained on, by a metric that is not the "
        "reward.",
    ),
    "steps_out_of_order": (
        "Two runs, or a run and its resumption, wrote into one file.",
        "One folder a run; after a resume, drop what was logged after the checkpoint.",
    ),
}
