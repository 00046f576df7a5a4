"""What runs a model. In reading order:

The command line
    parser              files of flags, short and full help, the likely flag for an unknown one
    arguments           the flags of both scripts; parse, complete, resume
    choices             the flags that name tasks and techniques, and what they mean for each task
    checks              flags that contradict each other, places that cannot be written; notes
Data
    batching            rows of ids, length buckets, batches of few shapes
    token_cache         token ids, kept on disk
    feature_cache       features of a frozen encoder, kept on disk
Training
    model_config        the configuration of a model, and the encoder that it describes
    losses              a task's losses, summed; penalties
    step                one optimizer step
    loop                epochs, log points, scorings, checkpoints
    progress            what a run prints: batches, the line of progress, notes
    signals             Ctrl-C and SIGTERM: finish the step, save, stop
    ema                 exponential moving average of the weights
Files of a run
    run_folder          arguments, metrics, the lock
    checkpoint          tensor-only checkpoints
Several processes
    distributed         what processes started by torchrun share
Speed
    cpu                 threads and memory on CPUs
    packed_attention    query, key and value in one matrix product
    fast_dropout        dropout with 15 random bits a number, on CPUs
    fused_adamw         AdamW in one pass over memory
    attention_backends  which kernel computes attention
    unpadded            layers over real tokens only
    cuda_graphs         the step of one task as a CUDA graph
    joint_graphs        the step of several tasks as CUDA graphs
"""
